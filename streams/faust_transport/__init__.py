"""A Faust transport on librdkafka: low idle cost, ordered commits with metadata, partitions prepared before records."""

from streams.faust_transport.options import CommitMetadata, Committed, Options, PartitionListener
from streams.faust_transport.transport import SCHEME, register

__all__ = ["SCHEME", "CommitMetadata", "Committed", "Options", "PartitionListener", "register"]
