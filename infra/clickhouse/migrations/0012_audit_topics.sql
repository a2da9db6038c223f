-- The topics of the audit (docs/audit.md): signatures under how far the hash chains are, and who read which call.

CREATE TABLE IF NOT EXISTS checkpoints
(
    event_id        UUID COMMENT 'UUID derived from the series and the number, so that readers drop repeats by it.',
    session_id      UUID COMMENT 'UUID of the series, derived from the key that signs; also the Kafka key (UTF-8).',
    tenant_id       LowCardinality(String) COMMENT 'Empty: the calls of all tenants are meant.',
    agent_id        LowCardinality(String) COMMENT 'Empty: no agent is meant.',
    turn            Int32 COMMENT 'Always 0: no turn is meant.',
    seq             Int64 COMMENT 'Number of the checkpoint in its series, from 1, without gaps.' CODEC(Delta, ZSTD(1)),
    occurred_at     DateTime64(6, 'UTC') COMMENT 'When it happened, microseconds since the epoch, UTC.' CODEC(Delta, ZSTD(1)),
    causation_id    Nullable(UUID) COMMENT 'event_id of the event that caused this one; null for what came from outside.',
    statement       String COMMENT 'What is signed, as canonical JSON: series, number, the SHA-256 of the statement before (previous), the Merkle root of the heads (root) and their count, the time, since which offset records are chained, and up to which they are covered.' CODEC(ZSTD(3)),
    signature       String COMMENT 'Ed25519 signature of the statement''s bytes, base64.',
    public_key      LowCardinality(String) COMMENT 'The raw public key that it can be verified with, base64. Trust a copy from elsewhere, not this.',
    heads           Array(Tuple(record_key String, topic String, partition Int32, position Int64, offset Int64, link String)) COMMENT 'The heads of the chains that grew since the checkpoint before, by key, topic and partition.' CODEC(ZSTD(3)),
    kafka_partition UInt16 COMMENT 'Partition of the record; the topic is the table''s.',
    kafka_offset    UInt64 COMMENT 'Offset of the record.' CODEC(Delta, ZSTD(1)),
    ingested_at     DateTime64(6, 'UTC') DEFAULT now64(6, 'UTC') COMMENT 'When the row was written.' CODEC(Delta, ZSTD(1))
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(occurred_at)
ORDER BY (tenant_id, session_id, turn, seq, event_id)
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'voice.checkpoints: The platform''s signature under how far the hash chains of the audit record are.';

CREATE TABLE IF NOT EXISTS accesses
(
    event_id        UUID COMMENT 'UUID, deterministic: the same input record always yields the same id, so readers drop repeats by it.',
    session_id      UUID COMMENT 'UUID of the call that was read, or one derived from the actor where no single call is meant; also the Kafka key (UTF-8).',
    tenant_id       LowCardinality(String) COMMENT 'The tenant that owns the call, or whose calls were meant; empty: all.',
    agent_id        LowCardinality(String) COMMENT 'The agent that answered the call; empty where no single call is meant.',
    turn            Int32 COMMENT 'Always 0: no turn is meant.',
    seq             Int64 COMMENT 'Microseconds since the epoch: accesses have no other order.' CODEC(Delta, ZSTD(1)),
    occurred_at     DateTime64(6, 'UTC') COMMENT 'When it happened, microseconds since the epoch, UTC.' CODEC(Delta, ZSTD(1)),
    causation_id    Nullable(UUID) COMMENT 'Always null: it came from outside.',
    kind            LowCardinality(String) COMMENT 'read: the events of a call were shown. listed: which calls there were. followed: events were shown as they came. exported: a call was written to a bundle. replayed: events were sent to another system once more. queried: a question was asked in SQL. verified: the record of calls was checked, without showing any.',
    actor           LowCardinality(String) COMMENT 'Who: the id of an API key, a user of ClickHouse or of the machine; local: whoever reaches a gateway that asks for no key.',
    via             LowCardinality(String) COMMENT 'The way: rest, cli or clickhouse.',
    what            String COMMENT 'What was asked for, for people: a path, a command, topics.',
    query           String COMMENT 'Of queried: the question, its first 2,000 characters, with ? for every literal but ids of calls, since it may name persons.' CODEC(ZSTD(3)),
    kafka_partition UInt16 COMMENT 'Partition of the record; the topic is the table''s.',
    kafka_offset    UInt64 COMMENT 'Offset of the record.' CODEC(Delta, ZSTD(1)),
    ingested_at     DateTime64(6, 'UTC') DEFAULT now64(6, 'UTC') COMMENT 'When the row was written.' CODEC(Delta, ZSTD(1))
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(occurred_at)
ORDER BY (tenant_id, session_id, turn, seq, event_id)
TTL toDateTime(occurred_at) + toIntervalDay(400) DELETE
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'voice.accesses: Somebody looked at what is kept of calls: who, which call, when, by which way.';
