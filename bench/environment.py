"""What a platform that is measured learns from the environment of whoever measures it.

An address, a key or a folder that is exported for a platform at work would have the benchmark's calls written into it.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from streams.settings import PrivacySettings

_PREFIX = "TRUNKLINE_"
KEPT = (
    # Where models lie on this machine, and which of them are measured: they answer, and keep nothing.
    "TRUNKLINE_MODELS_FILE",
    "TRUNKLINE_CACHE_DIR",
    "TRUNKLINE_ENGINES__",
    # What the embedded broker is started from: no address of another one.
    "TRUNKLINE_KAFKA__JAVA_HOME",
    "TRUNKLINE_KAFKA__DISTRIBUTION_DIR",
    "TRUNKLINE_KAFKA__JARS_DIR",
    "TRUNKLINE_KAFKA__MAVEN_URL",
    "TRUNKLINE_KAFKA__HEAP_MB",
)


def left_out() -> list[str]:
    """Settings of the environment that a measurement does not heed."""
    return sorted(
        name
        for name in os.environ
        if name.upper().startswith(_PREFIX)
        if not any(name.upper() == kept or (kept.endswith("__") and name.upper().startswith(kept)) for kept in KEPT)
    )


def environment(given: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without settings that nobody gave for the measurement, and `given`."""
    dropped = set(left_out())
    return {name: value for name, value in os.environ.items() if name not in dropped} | dict(given or {})


def own_keys(data_dir: Path) -> PrivacySettings:
    """Where a platform keeps its calls' keys whose environment names no other folder."""
    return PrivacySettings(keys_dir=data_dir / "keys")


def forget() -> list[str]:
    """Takes them out of this process's own environment, and returns their names.

    For a benchmark's main: settings made in it must be those of the platform that it starts.
    """
    names = left_out()
    for name in names:
        del os.environ[name]
    return names
