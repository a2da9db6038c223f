"""Schema ids: those that ship with the platform, or a registry's."""

from schemas import files
from schemas.publish import pending


class RegistryError(RuntimeError):
    """Schema ids cannot be found out: unpublished schemas, or a registry that does not answer."""


class BuiltInIds:
    """The ids in `schemas/published`."""

    def __init__(self) -> None:
        if pending():
            raise RegistryError(f"unpublished schemas: {', '.join(pending())}; run python -m schemas.publish")
        self._current = {entry.name: entry.id for entry in files.published()}
        self._entries = {entry.id: entry for entry in files.published()}

    def id_of(self, name: str) -> int:
        """See `codec.SchemaIds`."""
        return self._current[name]

    def schema(self, schema_id: int) -> files.Schema | None:
        """See `codec.SchemaIds`."""
        entry = self._entries.get(schema_id)
        return None if entry is None else files.load_published(entry)
