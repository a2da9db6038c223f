-- What was refused to whom: one row for each event of voice.refusals.

CREATE TABLE IF NOT EXISTS refusals
(
    event_id        UUID COMMENT 'UUID, deterministic: the same input record always yields the same id, so readers drop repeats by it.',
    session_id      UUID COMMENT 'UUID derived from the name of the process that refused, for no call is meant; also the Kafka key (UTF-8).',
    tenant_id       LowCardinality(String) COMMENT 'The tenant of the key that was shown; the platform''s own where the key is of all tenants, or nobody''s.',
    agent_id        LowCardinality(String) COMMENT 'Empty: no agent is meant.',
    turn            Int32 COMMENT 'Always 0: no turn is meant.',
    seq             Int64 COMMENT 'Position among the events of this process since it started; grows by one.' CODEC(Delta, ZSTD(1)),
    occurred_at     DateTime64(6, 'UTC') COMMENT 'When it happened, microseconds since the epoch, UTC.' CODEC(Delta, ZSTD(1)),
    causation_id    Nullable(UUID) COMMENT 'event_id of the event that caused this one; null for what came from outside.',
    kind            LowCardinality(String) COMMENT 'unauthenticated: nothing was shown that lets in. forbidden: the key''s role may not do that. foreign: what was asked for is another tenant''s; who asked was told that it does not exist. limited: the key asked more often than it may.',
    component       LowCardinality(String) COMMENT 'The process that refused, such as api.0.',
    key_id          String COMMENT 'Who was refused: a key''s id, api.key, or jwt: and the token''s subject; empty where that is not known.',
    role            LowCardinality(String) COMMENT 'The roles of who was refused, separated by commas; empty where that is not known.',
    action          LowCardinality(String) COMMENT 'What was asked for: a method and a route, such as GET /v1/sessions/{session_id}; of ClickHouse, SQL.',
    target          String COMMENT 'The id in the route: a session''s, a webhook''s, a key''s; empty where there is none, or it looks like no id.',
    permission      LowCardinality(String) COMMENT 'Of forbidden: what the role lacks, such as words:read.',
    reason          LowCardinality(String) COMMENT 'Why, in a word, such as no_key, unknown_key, revoked_key, expired_token, role, tenant, rate.',
    count           Int32 COMMENT 'How many such refusals are meant: more than one where many came at once, and then action and target are empty.',
    kafka_partition UInt16 COMMENT 'Partition of the record; the topic is the table''s.',
    kafka_offset    UInt64 COMMENT 'Offset of the record.' CODEC(Delta, ZSTD(1)),
    ingested_at     DateTime64(6, 'UTC') DEFAULT now64(6, 'UTC') COMMENT 'When the row was written.' CODEC(Delta, ZSTD(1))
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(occurred_at)
ORDER BY (tenant_id, session_id, turn, seq, event_id)
TTL toDateTime(occurred_at) + toIntervalDay(400) DELETE
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'voice.refusals: Somebody asked for what is not theirs: who, what, why. It holds no secret that was shown.';
