-- How calls went, and how customers fare: one row for each event of voice.customers.

CREATE TABLE IF NOT EXISTS customers
(
    event_id        UUID COMMENT 'UUID, deterministic: the same input record always yields the same id, so readers drop repeats by it.',
    session_id      UUID COMMENT 'UUID of the call; also the Kafka key (UTF-8).',
    tenant_id       LowCardinality(String) COMMENT 'The tenant that owns the call.',
    agent_id        LowCardinality(String) COMMENT 'The agent that answers the call: the name of its YAML file. Carried by every event, so that no stage has to join topics to know whose rules apply.',
    turn            Int32 COMMENT 'The call''s last turn.',
    seq             Int64 COMMENT 'Position among the events of the process since it started; grows by one.' CODEC(Delta, ZSTD(1)),
    occurred_at     DateTime64(6, 'UTC') COMMENT 'When it happened, microseconds since the epoch, UTC.' CODEC(Delta, ZSTD(1)),
    causation_id    Nullable(UUID) COMMENT 'event_id of the event that caused this one; null for what came from outside.',
    kind            LowCardinality(String) COMMENT 'scored: a call is over, and says how the customer fares.',
    customer        String COMMENT 'Stands for the caller, the same in all calls of the tenant: made from who called with a key. Empty where that is not known.',
    caller          Nullable(String) COMMENT 'Who called, as the session''s start said.',
    score           Int32 COMMENT 'The customer''s health after the call, 0 (lost) to 100: what it was, moved towards call_score. Where the caller is not known, call_score.',
    score_before    Int32 COMMENT 'The same before the call; -1 where this is the first.',
    calls           Int32 COMMENT 'How many calls it is made of, this one included.',
    call_score      Int32 COMMENT 'How this call went, 0 to 100; docs/crm.md says how it is made.',
    disposition     LowCardinality(String) COMMENT 'What the call came to: resolved, unresolved, escalated, abandoned, failed.',
    sentiment       Float32 COMMENT 'Mean of the caller''s turns, -1 (upset) to 1 (pleased).',
    summary         String COMMENT 'What was asked and what came of it, in the caller''s own words.',
    intents         Array(LowCardinality(String)) COMMENT 'What was wanted, in the order of the first time.',
    turns           Int32 COMMENT 'The caller''s turns.',
    duration_ms     Int64 COMMENT 'Length of the call in milliseconds.',
    reason          LowCardinality(String) COMMENT 'Why the call ended, as the session''s end said.',
    kafka_partition UInt16 COMMENT 'Partition of the record; the topic is the table''s.',
    kafka_offset    UInt64 COMMENT 'Offset of the record.' CODEC(Delta, ZSTD(1)),
    ingested_at     DateTime64(6, 'UTC') DEFAULT now64(6, 'UTC') COMMENT 'When the row was written.' CODEC(Delta, ZSTD(1))
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(occurred_at)
ORDER BY (tenant_id, session_id, turn, seq, event_id)
TTL toDateTime(occurred_at) + toIntervalDay(400) DELETE
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'voice.customers: How a call went, and how the customer who called fares since.';
