"""A Faust transport on librdkafka: low idle cost, ordered commits, partitions prepared before records."""

from streams.faust_transport.options import Committed, Confirm, Options, PartitionListener
from streams.faust_transport.transport import SCHEME, register

__all__ = ["SCHEME", "Committed", "Confirm", "Options", "PartitionListener", "register"]
