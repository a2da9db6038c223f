"""The transport that Faust loads for `trunkline://` URLs."""
# Faust comes without usable types: its classes are Any here.
# mypy: allow-subclassing-any

import confluent_kafka
from faust.transport.base import Transport as FaustTransport
from faust.transport.drivers import TRANSPORTS

from streams.faust_transport.conductor import Conductor
from streams.faust_transport.consumer import Consumer
from streams.faust_transport.producer import Producer

SCHEME = "trunkline"


class Transport(FaustTransport):
    """Kafka through librdkafka; see docs/adr/0002-faust-on-librdkafka.md."""

    Consumer = Consumer
    Producer = Producer
    Conductor = Conductor
    default_port = 9092
    driver_version = f"confluent-kafka={confluent_kafka.__version__}"


def register() -> None:
    """Makes `trunkline://host:port` a broker URL that Faust knows, in this process."""
    TRANSPORTS.aliases[SCHEME] = f"{__name__}:Transport"
