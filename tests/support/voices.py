"""A catalogue of models with further voices: the same voice under other names, and one whose file is another."""

from pathlib import Path

import yaml

from streams.settings import Settings

SECOND, ALTERED = "hibari-second", "hibari-altered"


def write_catalogue(folder: Path) -> Path:
    """The platform's own catalogue with `SECOND`, which speaks, and `ALTERED`, which is refused; returns the file."""
    listed = yaml.safe_load(Settings().models_file.read_text(encoding="utf-8"))
    first = next(model for model in listed["models"] if model["name"] == "hibari")
    (file,) = first["files"]
    second = {**first, "name": SECOND}
    altered = {**first, "name": ALTERED, "files": [{**file, "sha256": "0" * 64}]}
    listed["models"] += [second, altered]
    path = folder / "models.yaml"
    path.write_text(yaml.safe_dump(listed, sort_keys=False), encoding="utf-8")
    return path
