"""A call's key is made once, opens what it sealed and nothing else, and is gone for good when it is destroyed."""

import stat
import threading
import uuid
from pathlib import Path

import msgspec
import pytest

from schemas import files
from streams.clock import SystemClock
from streams.keyring import LOOKED_S, OPEN_MAX, AlteredError, KeyFile, Keyring
from streams.kms import KeyManagementError, LocalKeys, WrongKeyError, key_management
from streams.settings import PrivacySettings, Settings

CALL = str(uuid.uuid4())
NOW_US = 17


class Time(SystemClock):
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic_s(self) -> float:
        return self.now_s

    def now_us(self) -> int:
        return NOW_US


def keyring(directory: Path, time: Time | None = None) -> Keyring:
    """As another process would open it: nothing in memory."""
    return Keyring(directory, LocalKeys(directory), time or Time())


def key_files(directory: Path) -> list[Path]:
    return [path for path in (directory / "calls").rglob("*") if path.is_file()]


@pytest.mark.parametrize("name", files.CLASSES)
def test_what_is_sealed_is_opened_by_another_process(tmp_path: Path, name: str) -> None:
    key, other = keyring(tmp_path).keys(CALL, "acme")[name], keyring(tmp_path).known(CALL)[name]
    sealed = key.seal(b"one two", "event-1")
    assert b"one two" not in sealed
    assert other.open(sealed, "event-1") == b"one two"
    assert key.seal(b"one two", "event-1") != sealed, "the nonce is new each time"


def test_sealed_bytes_belong_to_their_call_class_and_place(tmp_path: Path) -> None:
    keys = keyring(tmp_path)
    words, audio = (keys.keys(CALL, "acme")[name] for name in files.CLASSES)
    stranger = keys.keys(str(uuid.uuid4()), "acme")["words"]
    sealed = words.seal(b"words", "event-1")
    altered = sealed[:-1] + bytes([sealed[-1] ^ 1])
    for opener, value, place in [
        (words, sealed, "event-2"),
        (audio, sealed, "event-1"),
        (stranger, sealed, "event-1"),
        (words, altered, "event-1"),
        (words, b"", "event-1"),
        (words, sealed[:12], "event-1"),
    ]:
        with pytest.raises(AlteredError):
            opener.open(value, place)


def test_processes_that_come_at_once_agree_on_the_keys(tmp_path: Path) -> None:
    rings = [keyring(tmp_path) for _ in range(8)]
    found: list[tuple[bytes, ...]] = []
    together = threading.Barrier(len(rings))

    def ask(ring: Keyring) -> None:
        together.wait()
        keys = ring.keys(CALL, "acme")
        found.append(tuple(keys[name].value for name in files.CLASSES))

    threads = [threading.Thread(target=ask, args=(ring,)) for ring in rings]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == len(rings)
    assert len(set(found)) == 1
    assert len(key_files(tmp_path)) == 1, "nothing else is left behind"


def test_only_the_owner_may_read_keys(tmp_path: Path) -> None:
    keyring(tmp_path).keys(CALL, "acme")
    found = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(found) == 2
    assert {stat.S_IMODE(path.stat().st_mode) for path in found} == {0o600}


def test_no_key_lies_there_unwrapped(tmp_path: Path) -> None:
    for key in keyring(tmp_path).keys(CALL, "acme").values():
        for path in tmp_path.rglob("*"):
            assert path.is_dir() or key.value not in path.read_bytes()


def test_destroyed_keys_are_gone_for_good(tmp_path: Path) -> None:
    keys = keyring(tmp_path)
    assert set(keys.keys(CALL, "acme")) == set(files.CLASSES)
    (path,) = key_files(tmp_path)
    wrapped = msgspec.msgpack.decode(path.read_bytes(), type=KeyFile).wrapped
    tombstone = keys.destroy(CALL, "acme")
    assert tombstone == KeyFile(CALL, "acme", NOW_US, {}, erased_at=NOW_US)
    for ring in (keys, keyring(tmp_path)):
        assert not ring.known(CALL)
        assert not ring.keys(CALL, "acme"), "nobody makes it another one"
    assert keys.destroy(CALL, "acme") == tombstone, "repeated, nothing changes"
    for key in wrapped.values():
        assert all(path.is_dir() or key not in path.read_bytes() for path in tmp_path.rglob("*"))


def test_audio_can_be_forgotten_before_words(tmp_path: Path) -> None:
    keys = keyring(tmp_path)
    words = keys.keys(CALL, "acme")["words"]
    rest = keys.destroy(CALL, "acme", ["audio"])
    assert (set(rest.wrapped), rest.erased_at) == ({"words"}, 0)
    for ring in (keys, keyring(tmp_path)):
        assert set(ring.known(CALL)) == {"words"}
        assert set(ring.keys(CALL, "acme")) == {"words"}
        assert ring.known(CALL)["words"].value == words.value
    assert keys.destroy(CALL, "acme", ["audio"]) == rest
    assert keys.destroy(CALL, "acme").erased_at == NOW_US


def test_a_key_is_overwritten_where_it_lies(tmp_path: Path) -> None:
    keys = keyring(tmp_path)
    keys.keys(CALL, "acme")
    (path,) = key_files(tmp_path)
    before = path.read_bytes()
    with path.open("rb") as still_open:
        keys.destroy(CALL, "acme")
        after = still_open.read()
    assert len(after) == len(before)
    assert after != before


def test_a_call_without_keys_can_be_erased_beforehand(tmp_path: Path) -> None:
    keyring(tmp_path).destroy(CALL, "acme")
    assert not keyring(tmp_path).keys(CALL, "acme")


def test_other_processes_forget_destroyed_keys_when_told_and_within_a_while(tmp_path: Path) -> None:
    time = Time()
    told, untold = keyring(tmp_path), keyring(tmp_path, time)
    assert told.keys(CALL, "acme")
    assert untold.keys(CALL, "acme")
    keyring(tmp_path).destroy(CALL, "acme")
    told.forget(CALL)
    assert not told.known(CALL)
    assert untold.known(CALL)
    time.now_s += LOOKED_S + 1
    assert not untold.known(CALL)


def test_keys_that_come_later_are_found(tmp_path: Path) -> None:
    reader = keyring(tmp_path)
    assert not reader.known(CALL)
    assert keyring(tmp_path).keys(CALL, "acme")
    assert reader.known(CALL)


def test_opened_keys_are_bounded(tmp_path: Path) -> None:
    keys = keyring(tmp_path)
    for number in range(OPEN_MAX + 10):
        keys.keys(f"call-{number}", "acme")
    assert len(keys._opened) == OPEN_MAX


def test_every_calls_file_is_listed(tmp_path: Path) -> None:
    keys = keyring(tmp_path)
    assert not list(keys.every())
    keys.keys("one", "acme")
    keys.destroy("two", "acme")
    found = {file.session_id: file for file in keys.every()}
    assert {name: bool(file.erased_at) for name, file in found.items()} == {"one": False, "two": True}
    assert keys.file("one") == found["one"]
    assert keys.file("three") is None


@pytest.mark.parametrize("session_id", ["", "../../etc/passwd", "a" * 5000, "\udc80", "call/1"])
def test_no_session_id_becomes_a_path(tmp_path: Path, session_id: str) -> None:
    inside = tmp_path / "keys"
    assert not keyring(inside).known(session_id)
    if session_id.isprintable():
        assert keyring(inside).keys(session_id, "../acme")
    assert all(path.is_relative_to(inside) for path in tmp_path.rglob("*") if path.is_file())


def test_a_tenant_cannot_open_anothers_key(tmp_path: Path) -> None:
    management = LocalKeys(tmp_path)
    wrapped = management.wrap("acme", b"k" * 32, b"call")
    assert management.unwrap("acme", wrapped, b"call") == b"k" * 32
    for tenant, context in [("umbrella", b"call"), ("acme", b"another")]:
        with pytest.raises(WrongKeyError, match=tenant):
            management.unwrap(tenant, wrapped, context)


@pytest.mark.parametrize("content", [b"", b"garbage"])
def test_a_file_that_holds_no_keys_is_as_none(tmp_path: Path, content: bytes) -> None:
    before = keyring(tmp_path).keys(CALL, "acme")["words"].value
    (path,) = key_files(tmp_path)
    path.write_bytes(content)
    keys = keyring(tmp_path)
    assert not keys.known(CALL)
    assert keys.keys(CALL, "acme")["words"].value != before
    assert keyring(tmp_path).known(CALL)["words"].value == keys.known(CALL)["words"].value


def test_keys_under_a_lost_tenants_key_stop_no_reader(tmp_path: Path) -> None:
    keyring(tmp_path).keys(CALL, "acme")
    (tmp_path / "tenant-acme.key").unlink()
    assert not keyring(tmp_path).known(CALL)
    with pytest.raises(WrongKeyError, match="acme"):
        keyring(tmp_path).keys(CALL, "acme")


def own_kms(settings: Settings) -> LocalKeys:
    return LocalKeys(settings.data_dir / "own")


def test_a_kms_of_ones_own(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, privacy=PrivacySettings(kms=f"{__name__}:own_kms"))
    key_management(settings).wrap("acme", b"k" * 32, b"")
    assert (tmp_path / "own" / "tenant-acme.key").exists()


@pytest.mark.parametrize("name", ["", "vault", "nothing.there:here", f"{__name__}:nobody"])
def test_a_kms_that_is_not_there_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(KeyManagementError, match=r"privacy\.kms: local or package\.module:factory is expected"):
        key_management(Settings(data_dir=tmp_path, privacy=PrivacySettings(kms=name)))
