-- Hints for people who follow calls: one row for each event of voice.assist.

CREATE TABLE IF NOT EXISTS suggestions
(
    event_id        UUID COMMENT 'UUID, deterministic: the same input record always yields the same id, so readers drop repeats by it.',
    session_id      UUID COMMENT 'UUID of the call; also the Kafka key (UTF-8).',
    tenant_id       LowCardinality(String) COMMENT 'The tenant that owns the call.',
    agent_id        LowCardinality(String) COMMENT 'The agent that answers the call: the name of its YAML file. Carried by every event, so that no stage has to join topics to know whose rules apply.',
    turn            Int32 COMMENT 'Turn of the conversation: 0 is the greeting, n the caller''s n-th utterance and its reply.',
    seq             Int64 COMMENT 'Position among the events of the process since it started; grows by one.' CODEC(Delta, ZSTD(1)),
    occurred_at     DateTime64(6, 'UTC') COMMENT 'When it happened, microseconds since the epoch, UTC.' CODEC(Delta, ZSTD(1)),
    causation_id    Nullable(UUID) COMMENT 'event_id of the event that caused this one; null for what came from outside.',
    kind            LowCardinality(String) COMMENT 'answer: what to say, from the intent''s template. action: what to look up or do, the agent''s tool. passage: what the agent''s documents say. record: who calls.',
    intent          LowCardinality(String) COMMENT 'The intent that it answers.',
    title           LowCardinality(String) COMMENT 'What it is about: the tool, the passage''s heading.',
    text            String COMMENT 'The suggestion itself.',
    document        LowCardinality(String) COMMENT 'Of passage: the knowledge document.',
    score           Float32 COMMENT 'Of passage: how well it fits, up to 1. Of answer and action: the intent''s confidence.',
    kafka_partition UInt16 COMMENT 'Partition of the record; the topic is the table''s.',
    kafka_offset    UInt64 COMMENT 'Offset of the record.' CODEC(Delta, ZSTD(1)),
    ingested_at     DateTime64(6, 'UTC') DEFAULT now64(6, 'UTC') COMMENT 'When the row was written.' CODEC(Delta, ZSTD(1))
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(occurred_at)
ORDER BY (tenant_id, session_id, turn, seq, event_id)
TTL toDateTime(occurred_at) + toIntervalDay(92) DELETE
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'voice.assist: A hint for a person who follows the call.';
