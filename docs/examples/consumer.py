"""Prints the events of every call: `python consumer.py BOOTSTRAP_SERVERS [REGISTRY_URL]`."""

import sys

from confluent_kafka import Consumer
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer
from confluent_kafka.serialization import MessageField, SerializationContext

TOPICS = "sessions audio.in transcripts intents responses audio.out control deadletters deliveries".split()

registry = sys.argv[2] if len(sys.argv) > 2 else "http://127.0.0.1:8080/registry"
decode = AvroDeserializer(SchemaRegistryClient({"url": registry}))
consumer = Consumer(
    {"bootstrap.servers": sys.argv[1], "group.id": "my-first-consumer", "auto.offset.reset": "earliest"}
)
consumer.subscribe([f"voice.{name}" for name in TOPICS])
try:
    while True:
        record = consumer.poll(1.0)
        if record is None:
            continue
        if record.error():
            print(record.error(), file=sys.stderr)
            continue
        event = decode(record.value(), SerializationContext(record.topic(), MessageField.VALUE))
        words = {name: value for name, value in event.items() if value and not isinstance(value, bytes)}
        print(record.topic(), record.partition(), record.offset(), words, flush=True)
except KeyboardInterrupt:
    pass
finally:
    consumer.close()
