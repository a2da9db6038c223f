"""Says whether a container's process is ready: `healthcheck.py NAME`, exit status 0 or 1. Standard library alone.

The process has announced itself (streams/ready.py) and lives; one that serves HTTP also answers /readyz.
"""

import json
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path

_TIMEOUT_S = 3.0


def problem(name: str, run_dir: Path) -> str:
    """Why `name` is not ready, or an empty string."""
    try:
        facts = json.loads((run_dir / f"{name}.json").read_bytes())
        os.kill(facts["pid"], 0)
    except FileNotFoundError:
        return f"{name} has not announced itself yet"
    except ProcessLookupError:
        return f"{name} is gone"
    if name == "api":
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{facts['http_port']}/readyz", timeout=_TIMEOUT_S).close()
        except (urllib.error.URLError, TimeoutError) as error:
            return f"{name} does not answer: {error}"
    return ""


if __name__ == "__main__":
    sys.exit(problem(sys.argv[1], Path(os.environ["TRUNKLINE_DATA_DIR"]) / "run") or 0)
