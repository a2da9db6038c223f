"""The registry's REST interface, read only, and the ids of a registry reached over HTTP."""

import json
from typing import Any

import httpx
import pytest

from schemas import files, json_form
from schemas.events import Transcript
from streams.codec import Codec, CodecError
from streams.registry import RegistryError, RegistryIds, Reply, respond, subject_of

SUBJECT = "voice.transcripts-value"
ENTRIES = [entry for entry in files.published() if entry.subject == SUBJECT]
ENTRY = ENTRIES[-1]
SCHEMA = files.load_published(ENTRY)


def get(path: str, **query: str) -> Reply:
    return respond("GET", path, query)


def test_subjects_are_the_topics_values() -> None:
    assert get("/subjects").body == sorted(f"{files.load(name)['topic']}-value" for name in files.names())
    assert get("/subjects", subjectPrefix="voice.audio", deleted="true").body == [
        "voice.audio.in-value",
        "voice.audio.out-value",
    ]
    assert subject_of("voice.transcripts") == SUBJECT


def test_a_schema_by_id() -> None:
    reply = get(f"/schemas/ids/{ENTRY.id}")
    assert (reply.status, json.loads(reply.body["schema"]), list(reply.body)) == (200, SCHEMA, ["schema"])
    reply = get(f"/schemas/ids/{ENTRY.id}", fetchMaxId="true", subject="")
    assert reply.body["maxId"] == len(files.published())
    assert get(f"/schemas/ids/{ENTRY.id}/schema").body == SCHEMA
    assert get(f"/schemas/ids/{ENTRY.id}/versions").body == [{"subject": SUBJECT, "version": ENTRY.version}]
    assert get(f"/schemas/ids/{ENTRY.id}/subjects").body == [SUBJECT]


def test_versions_of_a_subject() -> None:
    assert get(f"/subjects/{SUBJECT}/versions").body == [entry.version for entry in ENTRIES]
    wanted = {str(entry.version): entry for entry in ENTRIES} | {"latest": ENTRY, "-1": ENTRY}
    for version, entry in wanted.items():
        body = get(f"/subjects/{SUBJECT}/versions/{version}").body
        assert (body["subject"], body["version"], body["id"]) == (SUBJECT, entry.version, entry.id)
        assert json.loads(body["schema"]) == files.load_published(entry)
    assert get(f"/subjects/{SUBJECT.replace('.', '%2E')}/versions/latest/schema").body == SCHEMA


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/subjects/unheard-value/versions", 404, 40401),
        ("GET", "/subjects/unheard-value/versions/1", 404, 40401),
        ("POST", "/subjects/unheard-value", 404, 40401),
        ("GET", f"/subjects/{SUBJECT}/versions/99", 404, 40402),
        ("GET", f"/subjects/{SUBJECT}/versions/0", 422, 42202),
        ("GET", f"/subjects/{SUBJECT}/versions/first", 422, 42202),
        ("GET", f"/subjects/{SUBJECT}/versions/99999999999", 422, 42202),
        ("GET", "/schemas/ids/4711", 404, 40403),
        ("GET", "/schemas/ids/one", 404, 40403),
        ("GET", "/schemas/ids/4711/versions", 404, 40403),
        ("POST", f"/subjects/{SUBJECT}", 422, 42201),
        ("GET", "/config/unheard-value", 404, 40401),
        ("GET", "/nothing", 404, 404),
        ("DELETE", f"/subjects/{SUBJECT}", 405, 405),
        ("PUT", "/config", 405, 405),
    ],
)
def test_errors_carry_the_registrys_codes(method: str, path: str, status: int, code: int) -> None:
    reply = respond(method, path)
    assert (reply.status, reply.body["error_code"]) == (status, code)
    assert reply.body["message"]


def test_a_schema_is_found_by_its_text() -> None:
    body = json.dumps({"schema": json.dumps(SCHEMA), "schemaType": "AVRO"}).encode()
    reply = respond("POST", f"/subjects/{SUBJECT}", {"normalize": "false"}, body)
    assert (reply.status, reply.body["id"], reply.body["version"]) == (200, ENTRY.id, ENTRY.version)
    assert respond("POST", f"/subjects/{SUBJECT}/versions", {}, body) == Reply(200, {"id": ENTRY.id})
    other = json.dumps({"schema": '"string"'}).encode()
    assert respond("POST", f"/subjects/{SUBJECT}", {}, other).body["error_code"] == 40403
    assert respond("POST", f"/subjects/{SUBJECT}/versions", {}, other).status == 422


def test_the_rest_says_what_it_is() -> None:
    assert get("/").status == 200
    assert get("/config").body == {"compatibilityLevel": "FULL_TRANSITIVE"}
    assert get(f"/config/{SUBJECT}").body == {"compatibilityLevel": "FULL_TRANSITIVE"}
    assert get("/mode").body == {"mode": "READONLY"}
    assert get("/schemas/types").body == ["AVRO"]


class OtherRegistry:
    """A Confluent-compatible registry with ids of its own, as far as clients use it."""

    def __init__(self) -> None:
        self.ids: dict[int, str] = {}
        self.asked: list[str] = []
        self.status = 200

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(f"{request.method} {request.url.path}")
        if self.status != 200:
            return httpx.Response(self.status, json={"error_code": 40901, "message": "not compatible"})
        if request.method == "POST":
            self.ids[100 + len(self.ids)] = json.loads(request.content)["schema"]
            return httpx.Response(200, json={"id": max(self.ids)})
        schema = self.ids.get(int(request.url.path.rpartition("/")[2]))
        if schema is None:
            return httpx.Response(404, json={"error_code": 40403, "message": "Schema not found"})
        return httpx.Response(200, json={"schema": schema})


class StoppedClock:
    """Time that passes when told to."""

    now_s = 1000.0

    def now_us(self) -> int:
        return int(self.now_s * 1e6)

    def monotonic_s(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def registry_ids(registry: OtherRegistry, clock: StoppedClock | None = None) -> RegistryIds:
    transport = httpx.MockTransport(registry)
    return RegistryIds("http://someone:secret@registry.test", clock or StoppedClock(), transport)


def test_current_schemas_are_registered_and_their_ids_used() -> None:
    registry = OtherRegistry()
    codec = Codec(registry_ids(registry))
    assert registry.asked == [f"POST /subjects/{files.load(name)['topic']}-value/versions" for name in files.names()]
    final = json_form.examples(Transcript)[-1]
    value = codec.encode(final)
    assert json.loads(registry.ids[int.from_bytes(value[1:5], "big")]) == files.load("transcript")
    assert codec.decode("voice.transcripts", value).event_id == final.event_id
    assert not [asked for asked in registry.asked if asked.startswith("GET")]


def test_an_unknown_id_is_looked_up_once() -> None:
    registry = OtherRegistry()
    codec = Codec(registry_ids(registry))
    value = codec.encode(json_form.examples(Transcript)[-1])
    registry.ids[7] = json.dumps(files.load("transcript"))
    for _ in range(3):
        codec.decode("voice.transcripts", b"\x00" + (7).to_bytes(4, "big") + value[5:])
    assert registry.asked.count("GET /schemas/ids/7") == 1


def test_an_id_that_nobody_knows_is_not_asked_for_again_soon() -> None:
    registry, clock = OtherRegistry(), StoppedClock()
    codec = Codec(registry_ids(registry, clock))
    for passed_s in (0, 10, 25):
        clock.now_s += passed_s
        with pytest.raises(CodecError, match="unknown_schema"):
            codec.decode("voice.transcripts", b"\x00" + (7).to_bytes(4, "big") + b"x")
    assert registry.asked.count("GET /schemas/ids/7") == 2


@pytest.mark.parametrize("text", ["", "{", '"string"', "[]", '{"type": "enum", "name": "E", "symbols": []}'])
def test_what_is_no_record_is_of_no_topic(text: str) -> None:
    registry = OtherRegistry()
    codec = Codec(registry_ids(registry))
    registry.ids[7] = text
    with pytest.raises(CodecError, match="wrong_schema_for_topic"):
        codec.decode("voice.transcripts", b"\x00" + (7).to_bytes(4, "big") + b"x")


def test_a_registry_that_refuses_is_named_without_its_password() -> None:
    registry = OtherRegistry()
    registry.status = 409
    with pytest.raises(RegistryError, match=r"http://registry\.test.*POST /subjects/.* 409 .*not compatible") as caught:
        registry_ids(registry)
    assert "secret" not in str(caught.value)


def test_a_registry_that_is_away_makes_no_dead_letter() -> None:
    registry = OtherRegistry()
    codec: Any = Codec(registry_ids(registry))
    registry.status = 503
    with pytest.raises(RegistryError, match="503"):
        codec.decode("voice.transcripts", b"\x00" + (7).to_bytes(4, "big") + b"x")
