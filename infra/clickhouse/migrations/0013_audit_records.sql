-- A chained digest of every record of the log (docs/audit.md).

CREATE TABLE IF NOT EXISTS audit_records
(
    record_key      String COMMENT 'The record''s key, a call''s session id; what is no text is hex: and its bytes in hexadecimal digits.',
    kafka_topic     LowCardinality(String) COMMENT 'Topic of the record.',
    kafka_partition UInt16 COMMENT 'Its partition.',
    kafka_offset    UInt64 COMMENT 'Its offset.' CODEC(Delta, ZSTD(1)),
    position        UInt64 COMMENT 'Which record of its chain it is, from 1. A chain has the records of one key in one partition.' CODEC(Delta, ZSTD(1)),
    digest          FixedString(32) COMMENT 'SHA-256 over its timestamp, key, value and headers as they are stored.' CODEC(NONE),
    link            FixedString(32) COMMENT 'SHA-256 over the link before, the record''s place and its digest.' CODEC(NONE),
    recorded_at     DateTime64(3, 'UTC') COMMENT 'When the broker appended it.' CODEC(Delta, ZSTD(1)),
    ingested_at     DateTime64(6, 'UTC') DEFAULT now64(6, 'UTC') COMMENT 'When the row was written.' CODEC(Delta, ZSTD(1))
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(recorded_at)
ORDER BY (record_key, kafka_topic, kafka_partition, kafka_offset)
TTL toDateTime(recorded_at) + toIntervalDay(430) DELETE
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'Every record of the log in its hash chain. `trunkline audit verify` compares it with Kafka and with the checkpoints.';
