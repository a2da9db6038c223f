"""`models`: which models are used, whence they come, under which licence, and whether they are what they should be."""

from pathlib import Path
from typing import Any, Literal

from api.cli.context import settings_of
from api.cli.output import print_json, print_table, size
from api.errors import OperatorError
from processors import choices
from processors.choices import SWAPPABLE, settings_for
from processors.models import Model, ModelError, catalogue, chosen, readers, resolve, verify
from streams.settings import Settings
from streams.yamlfile import ConfigError

_ROLES: tuple[Literal["stt", "embeddings", "llm", "tts"], ...] = ("stt", "embeddings", "llm", "tts")


def show(data_dir: Path | None, hash_all: bool, as_json: bool) -> int:
    """Prints every model of models.yaml; returns 1 when one that is used is missing or altered."""
    settings = settings_of(data_dir)
    try:
        models = catalogue(settings)
        used = _used(settings, models)
    except (ConfigError, ModelError) as error:
        raise OperatorError(f"the models cannot be listed: {error}") from error
    rows = [_row(settings, model, model.name in used, hash_all) for model in models]
    _print(rows, as_json, explain_all=hash_all)
    return 1 if any(row["error"] and row["used"] for row in rows) else 0


def _used(settings: Settings, models: tuple[Model, ...]) -> set[str]:
    """Those that the settings choose, and those that took over since, for all callers or an agent's."""
    used = _chosen(settings, models)
    for role in SWAPPABLE:
        kept = choices.read(settings, role)
        for choice in kept.choices if choices.holds(settings, role, kept) else ():
            used |= _chosen(settings_for(settings, role, choice), models)
    return used


def _chosen(settings: Settings, models: tuple[Model, ...]) -> set[str]:
    hosted = {model.engine for model in models}
    roles = [role for role in _ROLES if getattr(settings.engines, role) in hosted]
    alone = {model.name for model in models if model.role not in _ROLES}
    chosen_ones = {chosen(settings, role).name for role in roles}
    return alone | chosen_ones | ({model.name for model in readers(settings)} if "stt" in roles else set())


def _row(settings: Settings, model: Model, used: bool, hash_all: bool) -> dict[str, Any]:
    error, path = "", ""
    try:
        found = verify(settings, model.name) if hash_all else resolve(settings, model.name, fetch=False)
        path = str(found.path)
    except ModelError as wrong:
        error = str(wrong)
    return {
        "name": model.name,
        "role": model.role,
        "engine": model.engine,
        "used": used,
        "source": model.source,
        "licence": model.licence,
        "size_bytes": model.size_bytes,
        "sha256": model.files[0].sha256,
        "files": [{"path": file.path, "sha256": file.sha256, "size_bytes": file.size_bytes} for file in model.files],
        "state": _state(model, used, error, hash_all),
        "path": path,
        "error": error,
    }


def _state(model: Model, used: bool, error: str, hash_all: bool) -> str:
    if not error:
        return "verified" if hash_all else "present"
    # A hub is asked when a model is first wanted.
    return "not fetched" if model.source.startswith("hub:") and not used else "missing or altered"


def _print(rows: list[dict[str, Any]], as_json: bool, explain_all: bool) -> None:
    if as_json:
        for row in rows:
            print_json(row)
        return
    columns = ("model", "role", "used", "licence", "size", "sha256", "state", "source")
    lines = [
        (
            row["name"],
            row["role"],
            "yes" if row["used"] else "",
            row["licence"],
            size(row["size_bytes"]),
            row["sha256"][:12],
            row["state"],
            row["source"],
        )
        for row in rows
    ]
    print_table(columns, lines, right=("size",))
    for row in rows:
        if row["error"] and (row["used"] or explain_all):
            print(row["error"])
