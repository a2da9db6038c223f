"""Which files an engine reads: named in one file, found where they are, refused when they are not what they claim.

Three kinds of source: the files of an installed Python package, a directory, or a repository of the Hugging Face hub.
Files of a model that lie in several places, or in pieces, are put together in the cache directory.
"""

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

import httpx
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from streams.settings import Settings
from streams.yamlfile import load_yaml

Role = Literal["stt", "vad", "embeddings", "llm", "tts"]
_BLOCK_BYTES = 1 << 20


class ModelError(Exception):
    """A model cannot be used: it is unknown, missing or altered. The text says which, and how to get it."""


def _source(value: str) -> str:
    kind, _, rest = value.partition(":")
    if kind not in ("package", "directory", "hub") or not rest:
        raise ValueError(
            f"expected package:MODULE[/FOLDER], directory:PATH or hub:OWNER/NAME@REVISION, found {value!r}"
        )
    if kind == "hub" and ("/" not in rest or not rest.partition("@")[2]):
        raise ValueError(f"expected hub:OWNER/NAME@REVISION, found {value!r}")
    return value


def _inside(value: str) -> str:
    path = PurePosixPath(value)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError(f"expected a path inside the model's folder, found {value!r}")
    return value


Source = Annotated[str, AfterValidator(_source)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelFile(_Entry):
    """One file of a model, `path` being its name in the model's folder."""

    path: Annotated[str, AfterValidator(_inside)]
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="the file's SHA-256 in 64 lower-case hex digits")
    size_bytes: int = Field(ge=1)
    source: Source | None = None
    parts: tuple[Source, ...] = ()


class Model(_Entry):
    """One model as models.yaml describes it."""

    name: str = Field(pattern="^[a-z0-9][a-z0-9._-]*$")
    role: Role
    engine: str
    description: str = ""
    voice: str = ""
    licence: str
    source: Source
    get: str = ""
    files: tuple[ModelFile, ...] = Field(min_length=1)

    @property
    def size_bytes(self) -> int:
        """What all its files weigh."""
        return sum(file.size_bytes for file in self.files)


class Catalogue(_Entry):
    """The whole of models.yaml."""

    models: tuple[Model, ...]

    @model_validator(mode="after")
    def _unique(self) -> "Catalogue":
        names = [model.name for model in self.models]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"each model needs a name of its own, found {', '.join(sorted(twice))} more than once")
        return self


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A model whose files are there and, at the latest check, were the right ones.

    `directory` holds every file under its `path`, as runtimes that load a folder want it.
    """

    model: Model
    directory: Path
    files: Mapping[str, Path]

    @property
    def name(self) -> str:
        """The model's name in models.yaml."""
        return self.model.name

    @property
    def licence(self) -> str:
        """The model's licence."""
        return self.model.licence

    @property
    def path(self) -> Path:
        """The model's first file: the model itself where there is but one."""
        return self.files[self.model.files[0].path]


def catalogue(settings: Settings) -> tuple[Model, ...]:
    """All models of `settings.models_file`; raises ConfigError, which names file, line, field and what is expected."""
    return load_yaml(settings.models_file, Catalogue).models


def find(settings: Settings, name: str) -> Model:
    """The model of that name; raises ModelError with the names there are."""
    models = catalogue(settings)
    for model in models:
        if model.name == name:
            return model
    known = ", ".join(model.name for model in models)
    raise ModelError(f"model {name!r} is not in {settings.models_file}; expected one of {known}")


def chosen(settings: Settings, role: Literal["stt", "embeddings", "llm", "tts"]) -> Model:
    """The model that the role's engine is to load: the one the settings name, else the first listed for the engine."""
    engine: str = getattr(settings.engines, role)
    name: str = getattr(settings.engines, f"{role}_model")
    if name:
        return find(settings, name)
    for model in catalogue(settings):
        if model.role == role and model.engine == engine:
            return model
    raise ModelError(
        f"no model of {settings.models_file} is for the {role} engine {engine!r}; list one, or choose "
        f"another engine with TRUNKLINE_ENGINES__{role.upper()}"
    )


def readers(settings: Settings) -> tuple[Model, ...]:
    """What the stt engine loads: the model that the settings name, else the smallest, and the largest to ask twice."""
    if settings.engines.stt_model:
        return (chosen(settings, "stt"),)
    listed = [model for model in catalogue(settings) if (model.role, model.engine) == ("stt", settings.engines.stt)]
    listed.sort(key=lambda model: model.size_bytes)
    return (listed[0], listed[-1]) if len(listed) > 1 else (chosen(settings, "stt"),)


def resolve(settings: Settings, name: str, fetch: bool = True) -> ResolvedModel:
    """Finds the model's files and checks them; a file already checked is only looked at (size and time of change).

    Raises ModelError. Reads whole files the first time, and may take minutes when a hub has to be asked; without
    `fetch` nothing is asked of the network.
    """
    return _Resolver(settings, find(settings, name), hash_all=False, fetch=fetch).resolve()


def verify(settings: Settings, name: str) -> ResolvedModel:
    """As `resolve` without fetching, but reads and hashes every file whatever was known of it."""
    return _Resolver(settings, find(settings, name), hash_all=True, fetch=False).resolve()


@dataclass(frozen=True, slots=True)
class _Resolver:
    settings: Settings
    model: Model
    hash_all: bool
    fetch: bool

    def resolve(self) -> ResolvedModel:
        files: dict[str, Path] = {}
        for file in self.model.files:
            path = self._assembled(file) if file.parts else self._place(file.source or self.model.source, file.path)
            if not path.is_file():
                raise self._error(f"file {file.path} is missing at {path}")
            self._check(file, path)
            files[file.path] = path
        return ResolvedModel(self.model, self._directory(files), files)

    def _place(self, source: str, path: str) -> Path:
        kind, _, rest = source.partition(":")
        if kind == "package":
            return self._package_folder(rest) / path
        if kind == "directory":
            return self.settings.models_file.parent / Path(rest).expanduser() / path
        return self._from_hub(rest, path)

    def _package_folder(self, place: str) -> Path:
        """The folder, found without importing the package: some of them import runtimes that are not installed."""
        module, _, folder = place.partition("/")
        spec = importlib.util.find_spec(module)
        if spec is None or not spec.submodule_search_locations:
            raise self._error(f"it needs the Python package {module}, which is not installed")
        return Path(next(iter(spec.submodule_search_locations))) / folder

    def _from_hub(self, place: str, path: str) -> Path:
        """The file in the hub's cache, fetched if it is not there yet."""
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        repository, _, revision = place.partition("@")
        with contextlib.suppress(LocalEntryNotFoundError):
            return Path(hf_hub_download(repository, path, revision=revision, local_files_only=True))
        if not self.fetch:
            raise self._error(f"file {path} was not fetched from the hub yet")
        try:
            return Path(hf_hub_download(repository, path, revision=revision))
        except (httpx.HTTPError, OSError, RuntimeError) as error:  # the hub's own errors are OSErrors
            wrong = f"file {path} could not be fetched from the hub ({type(error).__name__})"
            raise self._error(wrong) from error

    def _assembled(self, file: ModelFile) -> Path:
        """The file put together from its parts, once; several processes may do so at the same time."""
        target = self._cache_folder() / file.path
        if target.is_file() and target.stat().st_size == file.size_bytes:
            return target
        parts = [self._part(source) for source in file.parts]
        target.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with _replacing(target) as temporary, temporary.open("wb") as out:
            for part in parts:
                for block in _blocks(part):
                    digest.update(block)
                    out.write(block)
            if digest.hexdigest() != file.sha256:
                raise self._altered(file, " + ".join(map(str, parts)), digest.hexdigest())
        return target

    def _part(self, source: str) -> Path:
        holder, _, name = source.rpartition("/")
        path = self._place(holder, name)
        if not path.is_file():
            raise self._error(f"the part {name} is missing at {path}")
        return path

    def _check(self, file: ModelFile, path: Path) -> None:
        """Compares size and hash; remembers what was hashed by the file's size and time of change."""
        facts = path.stat()
        stamp = {"path": str(path), "size": facts.st_size, "mtime_ns": facts.st_mtime_ns, "sha256": file.sha256}
        note_name = hashlib.sha256(str(path).encode()).hexdigest()[:32]
        note = self.settings.cache_dir / "verified" / f"{note_name}.json"
        if not self.hash_all:
            with contextlib.suppress(OSError, ValueError):
                if json.loads(note.read_bytes()) == stamp:
                    return
        found = sha256(path)
        if found != file.sha256:
            note.unlink(missing_ok=True)
            where = f"{path}: delete it, and it is put together anew" if file.parts else str(path)
            raise self._altered(file, where, found)
        with contextlib.suppress(OSError):  # a read-only cache costs a hash at every start, not the start
            note.parent.mkdir(parents=True, exist_ok=True)
            with _replacing(note) as temporary:
                temporary.write_text(json.dumps(stamp))

    def _directory(self, files: Mapping[str, Path]) -> Path:
        """The folder that holds all files: their own where they share one, else one of links in the cache."""
        folders = {
            Path(str(path).removesuffix(name)) if str(path).endswith(name) else path for name, path in files.items()
        }
        if len(folders) == 1:
            return folders.pop()
        folder = self._cache_folder()
        for name, path in files.items():
            link = folder / name
            if link == path or (link.is_symlink() and link.readlink() == path):
                continue
            link.parent.mkdir(parents=True, exist_ok=True)
            with _replacing(link) as temporary:
                temporary.unlink()
                temporary.symlink_to(path)
        return folder

    def _cache_folder(self) -> Path:
        """One for each content, so that a changed models.yaml never meets old files."""
        content = "".join(file.path + file.sha256 for file in self.model.files)
        name = f"{self.model.name}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"
        return self.settings.cache_dir / "models" / name

    def _altered(self, file: ModelFile, where: str, found: str) -> ModelError:
        return self._error(
            f"file {file.path} ({where}) is not the one named in {self.settings.models_file}: "
            f"expected sha256 {file.sha256}, found {found}"
        )

    def _error(self, wrong: str) -> ModelError:
        return ModelError(f"model {self.model.name}: {wrong}. {self._how_to_get()}")

    def _how_to_get(self) -> str:
        kind, _, rest = self.model.source.partition(":")
        if kind == "package":
            return f"Install it afresh: {self.model.get or 'pip install --force-reinstall ' + _distribution(rest)}"
        if kind == "directory":
            folder = self.settings.models_file.parent / Path(rest).expanduser()
            return f"Put the files that {self.settings.models_file} names into {folder}"
        repository, _, revision = rest.partition("@")
        return (
            f"On a machine that reaches the hub: hf download {repository} --revision {revision} --local-dir DIR; "
            f"then bring DIR here and write source: directory:DIR"
        )


@contextlib.contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A temporary file beside the target, which takes its place when the block ends without an error."""
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            yield block


def sha256(path: Path) -> str:
    """The file's hash in hex."""
    digest = hashlib.sha256()
    for block in _blocks(path):
        digest.update(block)
    return digest.hexdigest()


def _distribution(place: str) -> str:
    module = place.partition("/")[0]
    return next(iter(importlib.metadata.packages_distributions().get(module, [module])))
