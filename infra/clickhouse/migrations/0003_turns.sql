-- One row for each turn: when each stage had its first result. Filled as events come; min and max make repeats harmless.
CREATE TABLE IF NOT EXISTS turn_times
(
    tenant_id         LowCardinality(String),
    session_id        UUID,
    turn              Int32,
    agent_id          SimpleAggregateFunction(max, String),
    speech_ended_at   SimpleAggregateFunction(min, Nullable(DateTime64(6, 'UTC'))),
    final_at          SimpleAggregateFunction(min, Nullable(DateTime64(6, 'UTC'))),
    intent_at         SimpleAggregateFunction(min, Nullable(DateTime64(6, 'UTC'))),
    first_sentence_at SimpleAggregateFunction(min, Nullable(DateTime64(6, 'UTC'))),
    first_audio_at    SimpleAggregateFunction(min, Nullable(DateTime64(6, 'UTC'))),
    completed_at      SimpleAggregateFunction(min, Nullable(DateTime64(6, 'UTC'))),
    interrupted_at    SimpleAggregateFunction(min, Nullable(DateTime64(6, 'UTC')))
)
ENGINE = AggregatingMergeTree
ORDER BY (tenant_id, session_id, turn)
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'First time of each step of a turn.';

CREATE MATERIALIZED VIEW IF NOT EXISTS mv_turn_transcripts TO turn_times AS
SELECT tenant_id, session_id, turn, max(toString(t.agent_id)) AS agent_id, min(t.speech_ended_at) AS speech_ended_at,
       min(toNullable(occurred_at)) AS final_at
FROM transcripts AS t WHERE kind = 'final' GROUP BY tenant_id, session_id, turn;

CREATE MATERIALIZED VIEW IF NOT EXISTS mv_turn_intents TO turn_times AS
SELECT tenant_id, session_id, turn, max(toString(t.agent_id)) AS agent_id, min(toNullable(occurred_at)) AS intent_at
FROM intents AS t WHERE kind = 'detected' AND committed GROUP BY tenant_id, session_id, turn;

CREATE MATERIALIZED VIEW IF NOT EXISTS mv_turn_sentences TO turn_times AS
SELECT tenant_id, session_id, turn, max(toString(t.agent_id)) AS agent_id,
       min(toNullable(occurred_at)) AS first_sentence_at
FROM responses AS t WHERE kind = 'sentence' GROUP BY tenant_id, session_id, turn;

CREATE MATERIALIZED VIEW IF NOT EXISTS mv_turn_completed TO turn_times AS
SELECT tenant_id, session_id, turn, max(toString(t.agent_id)) AS agent_id, min(toNullable(occurred_at)) AS completed_at
FROM responses AS t WHERE kind = 'completed' GROUP BY tenant_id, session_id, turn;

CREATE MATERIALIZED VIEW IF NOT EXISTS mv_turn_audio TO turn_times AS
SELECT tenant_id, session_id, turn, max(toString(t.agent_id)) AS agent_id,
       min(toNullable(occurred_at)) AS first_audio_at
FROM speech_chunks AS t WHERE kind = 'audio' GROUP BY tenant_id, session_id, turn;

CREATE MATERIALIZED VIEW IF NOT EXISTS mv_turn_interrupted TO turn_times AS
SELECT tenant_id, session_id, turn, max(toString(t.agent_id)) AS agent_id,
       min(toNullable(occurred_at)) AS interrupted_at
FROM controls AS t WHERE kind = 'barge_in' GROUP BY tenant_id, session_id, turn;

CREATE VIEW IF NOT EXISTS turns AS
SELECT tenant_id, session_id, turn, max(t.agent_id) AS agent_id,
       min(t.speech_ended_at) AS speech_ended_at, min(t.final_at) AS final_at, min(t.intent_at) AS intent_at,
       min(t.first_sentence_at) AS first_sentence_at, min(t.first_audio_at) AS first_audio_at,
       min(t.completed_at) AS completed_at, min(t.interrupted_at) AS interrupted_at,
       dateDiff('microsecond', speech_ended_at, final_at) / 1000 AS stt_ms,
       dateDiff('microsecond', final_at, intent_at) / 1000 AS intent_ms,
       dateDiff('microsecond', intent_at, first_sentence_at) / 1000 AS llm_ms,
       dateDiff('microsecond', first_sentence_at, first_audio_at) / 1000 AS tts_ms,
       dateDiff('microsecond', speech_ended_at, first_audio_at) / 1000 AS total_ms
FROM turn_times AS t GROUP BY tenant_id, session_id, turn;

CREATE VIEW IF NOT EXISTS calls AS
SELECT tenant_id, session_id, any(s.agent_id) AS agent_id, any(s.channel) AS channel,
       minIf(occurred_at, kind = 'started') AS started_at,
       if(countIf(kind = 'ended') > 0, maxIf(occurred_at, kind = 'ended'), NULL) AS ended_at,
       maxIf(s.duration_ms, kind = 'ended') AS duration_ms, anyIf(s.reason, kind = 'ended') AS reason
FROM sessions AS s FINAL GROUP BY tenant_id, session_id;
