"""Prints the events of every call, each once: `python consumer.py BOOTSTRAP_SERVERS [REGISTRY_URL [GROUP]]`."""

import json
import sys

from confluent_kafka import Consumer
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer
from confluent_kafka.serialization import MessageField, SerializationContext

TOPICS = "sessions audio.in transcripts intents responses audio.out control assist deadletters deliveries".split()

registry = sys.argv[2] if len(sys.argv) > 2 else "http://127.0.0.1:8080/registry"
group = sys.argv[3] if len(sys.argv) > 3 else "my-first-consumer"
decode = AvroDeserializer(SchemaRegistryClient({"url": registry}))
consumer = Consumer({"bootstrap.servers": sys.argv[1], "group.id": group, "auto.offset.reset": "earliest"})
consumer.subscribe([f"voice.{name}" for name in TOPICS])
seen: set[str] = set()
try:
    while True:
        record = consumer.poll(1.0)
        if record is None:
            continue
        if record.error():
            print(record.error(), file=sys.stderr)
            continue
        event = decode(record.value(), SerializationContext(record.topic(), MessageField.VALUE))
        if event["event_id"] in seen:
            continue  # a repeat: the first event with an id is the truth
        seen.add(event["event_id"])
        words = {name: value for name, value in event.items() if value and not isinstance(value, bytes)}
        print(record.topic(), record.partition(), record.offset(), json.dumps(words, default=str), flush=True)
except KeyboardInterrupt:
    pass
finally:
    consumer.close()
