-- The sink's own memory: what it is about to write, and up to where it has written.
CREATE TABLE IF NOT EXISTS sink_batches
(
    consumer_group LowCardinality(String) COMMENT 'The sink that wrote it.',
    batch          UInt64 COMMENT 'Number of the batch, growing by one.',
    ranges         String COMMENT 'First and last offset by topic and partition, as JSON: exactly these are written again after a crash.',
    planned_at     DateTime64(6, 'UTC') DEFAULT now64(6, 'UTC') COMMENT 'When it was planned.'
)
ENGINE = ReplacingMergeTree
ORDER BY (consumer_group, batch)
TTL toDateTime(planned_at) + toIntervalDay(7) DELETE
COMMENT 'Batches of the sink, recorded before they are written.';

CREATE TABLE IF NOT EXISTS sink_offsets
(
    consumer_group  LowCardinality(String) COMMENT 'The sink.',
    kafka_topic     LowCardinality(String) COMMENT 'Topic.',
    kafka_partition UInt16 COMMENT 'Partition.',
    next_offset     UInt64 COMMENT 'Offset of the next record to write.',
    written_at      DateTime64(6, 'UTC') DEFAULT now64(6, 'UTC') COMMENT 'When the records before it were written.'
)
ENGINE = ReplacingMergeTree(next_offset)
ORDER BY (consumer_group, kafka_topic, kafka_partition)
COMMENT 'Where each sink stands: everything below next_offset is in the tables.';
