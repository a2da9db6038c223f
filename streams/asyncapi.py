"""Writes docs/asyncapi.yaml, the topics as an AsyncAPI 3.0 document; `--check` fails instead when it differs.

python -m streams.asyncapi [--check]

It is made from the catalogue and the Avro files: nothing in it is written by hand. Values are described by the Avro
schemas themselves, which AsyncAPI's tools read with their Avro parser.
"""

import sys
from importlib.metadata import version
from typing import Any

import yaml

from schemas import files, json_form
from schemas.event import Event
from streams.codec import CONTENT_TYPE, headers
from streams.settings import REPOSITORY, KafkaSettings, Settings
from streams.topics import TOPICS, Topic

TARGET = REPOSITORY / "docs" / "asyncapi.yaml"
AVRO = "application/vnd.apache.avro+json;version=1.9.0"
BINDING_VERSION = "0.5.0"
HEADER = "# Generated from the topics' catalogue and schemas/avro by `python -m streams.asyncapi`; do not edit.\n"
DESCRIPTION = (
    "The events of a voice-AI platform. Every topic is keyed by the call's session id and partitioned with murmur2, so "
    "the events of a call that one topic holds are in order. Delivery is at least once: the first event with an "
    "event_id is the truth, later ones are repeats. Values are Avro in Confluent's wire format (a zero byte, the "
    "schema's id as four bytes, the record); headers carry CloudEvents 1.0 in binary mode and a W3C traceparent. "
    "docs/topics.md is the guide for consumers."
)
# The attributes of `streams.codec.headers`, as consumers see them.
ATTRIBUTES: dict[str, dict[str, str]] = {
    "ce_specversion": {"description": "CloudEvents: its version.", "const": "1.0"},
    "ce_id": {"description": "The event_id.", "format": "uuid"},
    "ce_source": {"description": "/trunkline/{tenant_id}/{topic}, percent-encoded.", "format": "uri-reference"},
    "ce_time": {"description": "When it happened (occurred_at), RFC 3339.", "format": "date-time"},
    "ce_subject": {"description": "The session_id, which is the key, too.", "format": "uuid"},
    "content-type": {"description": "Of the value.", "const": CONTENT_TYPE},
    "traceparent": {"description": "W3C trace context: a trace for each turn of a call, a span for each event."},
}


def document() -> dict[str, Any]:
    """The document for the catalogue's defaults, whatever the environment sets."""
    settings = Settings.model_construct(kafka=KafkaSettings())
    topics = [topic for topic in TOPICS.values() if topic.event is not None]
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Trunkline",
            "version": version("trunkline"),
            "description": DESCRIPTION,
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "defaultContentType": CONTENT_TYPE,
        "servers": _servers(),
        "channels": {_id(topic): _channel(topic, settings) for topic in topics},
        "operations": {f"send_{_id(topic)}": _operation(topic) for topic in topics},
        "components": {
            "messages": {event.NAME: _message(event) for topic in topics if (event := topic.event) is not None},
            "messageTraits": {"event": _trait()},
            "schemas": {"attributes": _attributes()},
        },
    }


def source() -> str:
    """The text of the file."""
    return HEADER + yaml.dump(document(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _Dumper(yaml.SafeDumper):
    """Without anchors: what is said twice is written twice."""

    def ignore_aliases(self, data: Any) -> bool:
        """See yaml."""
        return True


def _id(topic: Topic) -> str:
    """The topic as an identifier."""
    return topic.name.removeprefix("voice.").replace(".", "_")


def _servers() -> dict[str, Any]:
    registry = {"schemaRegistryUrl": "http://127.0.0.1:8080/registry", "schemaRegistryVendor": "confluent"}
    port = {"description": "`trunkline status` prints it.", "default": "9092"}
    brokers = {"description": "host:port of a broker.", "default": "kafka:9092"}
    return {
        "embedded": {
            "host": "127.0.0.1:{port}",
            "protocol": "kafka",
            "description": "The embedded broker of `trunkline up`, and the gateway's registry at its default port.",
            "variables": {"port": port},
            "bindings": {"kafka": {**registry, "bindingVersion": BINDING_VERSION}},
        },
        "cluster": {
            "host": "{broker}",
            "protocol": "kafka-secure",
            "description": "A Kafka cluster with TLS and SASL. Consumers need the right to read, and no other.",
            "variables": {"broker": brokers},
        },
    }


def _channel(topic: Topic, settings: Settings) -> dict[str, Any]:
    assert topic.event is not None
    config = topic.config(settings)
    kafka = {
        "topic": topic.name,
        "partitions": topic.partitions(settings),
        "topicConfiguration": {
            "cleanup.policy": [topic.cleanup],
            "retention.ms": int(config["retention.ms"]),
            "max.message.bytes": int(config["max.message.bytes"]),
        },
        "bindingVersion": BINDING_VERSION,
    }
    return {
        "address": topic.name,
        "description": files.load(topic.event.NAME)["doc"],
        "messages": {topic.event.NAME: {"$ref": f"#/components/messages/{topic.event.NAME}"}},
        "bindings": {"kafka": kafka},
    }


def _operation(topic: Topic) -> dict[str, Any]:
    """The platform sends: whoever else reads this document receives."""
    assert topic.event is not None
    return {
        "action": "send",
        "channel": {"$ref": f"#/channels/{_id(topic)}"},
        "messages": [{"$ref": f"#/channels/{_id(topic)}/messages/{topic.event.NAME}"}],
    }


def _message(event: type[Event]) -> dict[str, Any]:
    schema = files.load(event.NAME)
    example = json_form.examples(event)[0]
    return {
        "name": schema["name"],
        "title": schema["name"],
        "summary": schema["doc"],
        "traits": [{"$ref": "#/components/messageTraits/event"}],
        "headers": {
            "allOf": [
                {"$ref": "#/components/schemas/attributes"},
                {"type": "object", "properties": {"ce_type": {"type": "string", "enum": _types(event)}}},
            ]
        },
        "payload": {"schemaFormat": AVRO, "schema": schema},
        "examples": [{"headers": {name: value.decode() for name, value in headers(example)}}],
    }


def _types(event: type[Event]) -> list[str]:
    """Every ce_type that such an event can have."""
    if "kind" not in event.ENUMS:
        return [event.CE_TYPE]
    return [f"{event.CE_TYPE}.{kind.value}" for kind in event.ENUMS["kind"]]


def _trait() -> dict[str, Any]:
    key = {"type": "string", "format": "uuid", "description": "The session_id, in UTF-8."}
    kafka = {
        "key": key,
        "schemaIdLocation": "payload",
        "schemaIdPayloadEncoding": "confluent",
        "schemaLookupStrategy": "TopicNameStrategy",
        "bindingVersion": BINDING_VERSION,
    }
    session = {"description": "The call.", "location": "$message.header#/ce_subject"}
    return {"contentType": CONTENT_TYPE, "correlationId": session, "bindings": {"kafka": kafka}}


def _attributes() -> dict[str, Any]:
    properties = {name: {"type": "string", **about} for name, about in ATTRIBUTES.items()}
    return {"type": "object", "required": [*ATTRIBUTES, "ce_type"], "properties": properties}


def main() -> int:
    """Writes or, with `--check`, compares; exits 1 when they differ."""
    text = source()
    if "--check" not in sys.argv[1:]:
        TARGET.write_text(text, encoding="utf-8")
        return 0
    if TARGET.exists() and TARGET.read_text(encoding="utf-8") == text:
        return 0
    print("docs/asyncapi.yaml differs from the catalogue: run python -m streams.asyncapi", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
