-- How the platform itself fares: one row for each event of voice.health.

CREATE TABLE IF NOT EXISTS health
(
    event_id        UUID COMMENT 'UUID, deterministic: the same input record always yields the same id, so readers drop repeats by it.',
    session_id      UUID COMMENT 'UUID derived from the name of the process that speaks of itself, for no call is meant; also the Kafka key (UTF-8).',
    tenant_id       LowCardinality(String) COMMENT 'The tenant that owns the call.',
    agent_id        LowCardinality(String) COMMENT 'Empty: no agent is meant.',
    turn            Int32 COMMENT 'Always 0: no turn is meant.',
    seq             Int64 COMMENT 'Position among the events of this process since it started; grows by one.' CODEC(Delta, ZSTD(1)),
    occurred_at     DateTime64(6, 'UTC') COMMENT 'When it happened, microseconds since the epoch, UTC.' CODEC(Delta, ZSTD(1)),
    causation_id    Nullable(UUID) COMMENT 'event_id of the event that caused this one; null for what came from outside.',
    kind            LowCardinality(String) COMMENT 'breaker_opened: an engine is not asked any more, breaker_half_opened: it is being tried, breaker_closed: it answers again. load_raised, load_lowered: the platform does less for each call, or more again; level says how much. load_measured: how busy the process is, said again and again while it has calls.',
    component       LowCardinality(String) COMMENT 'The component, as trunkline status names it: stt, intent, llm, tts, api, clickhouse.',
    engine          LowCardinality(String) COMMENT 'The engine that a breaker guards, such as stt.0; empty for other kinds.',
    level           Int32 COMMENT 'The load level reached: 0 ordinary, then one for each step of what is given up.',
    reason          String COMMENT 'What was measured that led to it, for people.',
    utilisation     Float32 COMMENT 'Of load_measured: the share of its engines'' time that was in use lately, 0 to 1.',
    calls           Int32 COMMENT 'Of load_measured: the calls that this process worked for.',
    kafka_partition UInt16 COMMENT 'Partition of the record; the topic is the table''s.',
    kafka_offset    UInt64 COMMENT 'Offset of the record.' CODEC(Delta, ZSTD(1)),
    ingested_at     DateTime64(6, 'UTC') DEFAULT now64(6, 'UTC') COMMENT 'When the row was written.' CODEC(Delta, ZSTD(1))
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(occurred_at)
ORDER BY (tenant_id, session_id, turn, seq, event_id)
TTL toDateTime(occurred_at) + toIntervalDay(400) DELETE
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'voice.health: How the platform itself fares: what stopped answering, what was done about it, and when it was over.';
