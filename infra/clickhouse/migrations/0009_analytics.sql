-- What people ask: rollups that grow with each event, and views over them. The same event may come twice, in batches
-- long apart, so that nothing is ever added up as it comes: a rollup keeps values by what they belong to (the largest of
-- each), the sums are made when it is read, and filling it again from the tables changes nothing.

CREATE TABLE IF NOT EXISTS turn_costs
(
    tenant_id  LowCardinality(String) COMMENT 'The tenant that owns the call.',
    session_id UUID COMMENT 'The call.',
    turn       Int32 COMMENT 'The turn.',
    agent_id   SimpleAggregateFunction(max, String) COMMENT 'The agent.',
    began_at   SimpleAggregateFunction(min, DateTime64(6, 'UTC')) COMMENT 'When the first event of the turn that cost something happened.',
    stt_ms     SimpleAggregateFunction(maxMap, Map(Int32, Float32)) COMMENT 'Milliseconds of recognition, by reading (revision).',
    intent_ms  SimpleAggregateFunction(maxMap, Map(Int32, Float32)) COMMENT 'Milliseconds of understanding, by the reading judged.',
    llm_ms     SimpleAggregateFunction(maxMap, Map(UUID, Float32)) COMMENT 'Milliseconds of the language model, by event.',
    tool_ms    SimpleAggregateFunction(maxMap, Map(UUID, Float32)) COMMENT 'Milliseconds that tools took, by event.',
    tts_ms     SimpleAggregateFunction(maxMap, Map(UUID, Float32)) COMMENT 'Milliseconds of the voice, by event.',
    tokens_in  SimpleAggregateFunction(maxMap, Map(UUID, UInt32)) COMMENT 'Tokens that the language model read, by event.',
    tokens_out SimpleAggregateFunction(maxMap, Map(UUID, UInt32)) COMMENT 'Tokens that it made, by event.',
    caller_ms  SimpleAggregateFunction(maxMap, Map(Int32, Float32)) COMMENT 'Milliseconds of the caller''s speech, by utterance.',
    agent_ms   SimpleAggregateFunction(maxMap, Map(UUID, Float32)) COMMENT 'Milliseconds of speech that the voice made, by event.',
    heard_ms   SimpleAggregateFunction(max, Int32) COMMENT 'Milliseconds of the agent''s speech that the caller has heard.'
)
ENGINE = AggregatingMergeTree
ORDER BY (tenant_id, session_id, turn)
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'Rollup of what each turn cost, kept when its audio is gone. Ask the view costs.';

CREATE TABLE IF NOT EXISTS call_audio
(
    tenant_id   LowCardinality(String) COMMENT 'The tenant that owns the call.',
    session_id  UUID COMMENT 'The call.',
    minute      UInt32 COMMENT 'Minute of the caller''s audio, from 0.',
    agent_id    SimpleAggregateFunction(max, String) COMMENT 'The agent.',
    began_at    SimpleAggregateFunction(min, DateTime64(6, 'UTC')) COMMENT 'When the first frame of the minute was written.',
    frames      SimpleAggregateFunction(maxMap, Map(Int64, UInt32)) COMMENT 'Samples of each frame, by the index of its first.',
    end_sample  SimpleAggregateFunction(max, Int64) COMMENT 'Index behind the last sample.',
    sample_rate SimpleAggregateFunction(max, Int32) COMMENT 'Samples a second.'
)
ENGINE = AggregatingMergeTree
ORDER BY (tenant_id, session_id, minute)
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'Rollup of the audio received from callers, kept when the audio is gone. Ask the view audio.';

CREATE MATERIALIZED VIEW IF NOT EXISTS mv_cost_transcripts TO turn_costs AS
SELECT tenant_id, session_id, turn, max(toString(t.agent_id)) AS agent_id, min(occurred_at) AS began_at,
       maxMap(map(t.revision, t.compute_ms)) AS stt_ms,
       maxMap(if(kind = 'final', map(t.utterance, toFloat32(audio_end_ms - audio_start_ms)), map())) AS caller_ms
FROM transcripts AS t WHERE kind IN ('partial', 'final') GROUP BY tenant_id, session_id, turn;

CREATE MATERIALIZED VIEW IF NOT EXISTS mv_cost_intents TO turn_costs AS
SELECT tenant_id, session_id, turn, max(toString(t.agent_id)) AS agent_id, min(occurred_at) AS began_at,
       maxMap(map(t.revision, t.compute_ms)) AS intent_ms
FROM intents AS t WHERE kind = 'detected' GROUP BY tenant_id, session_id, turn;

CREATE MATERIALIZED VIEW IF NOT EXISTS mv_cost_responses TO turn_costs AS
SELECT tenant_id, session_id, turn, max(toString(t.agent_id)) AS agent_id, min(occurred_at) AS began_at,
       maxMap(if(kind != 'tool_returned', map(event_id, t.compute_ms), map())) AS llm_ms,
       maxMap(if(kind = 'tool_returned', map(event_id, t.compute_ms), map())) AS tool_ms,
       maxMap(map(event_id, toUInt32(greatest(0, t.tokens_in)))) AS tokens_in,
       maxMap(map(event_id, toUInt32(greatest(0, t.tokens_out)))) AS tokens_out
FROM responses AS t WHERE compute_ms > 0 OR t.tokens_in > 0 OR t.tokens_out > 0
GROUP BY tenant_id, session_id, turn;

CREATE MATERIALIZED VIEW IF NOT EXISTS mv_cost_speech TO turn_costs AS
SELECT tenant_id, session_id, turn, max(toString(t.agent_id)) AS agent_id, min(occurred_at) AS began_at,
       maxMap(map(event_id, t.compute_ms)) AS tts_ms,
       maxMap(map(event_id, toFloat32(pcm_bytes * 500 / greatest(1, sample_rate_hz)))) AS agent_ms
FROM speech_chunks AS t WHERE kind = 'audio' GROUP BY tenant_id, session_id, turn;

CREATE MATERIALIZED VIEW IF NOT EXISTS mv_cost_heard TO turn_costs AS
SELECT tenant_id, session_id, turn, max(toString(t.agent_id)) AS agent_id, min(occurred_at) AS began_at,
       max(t.heard_ms) AS heard_ms
FROM controls AS t WHERE kind IN ('playout', 'barge_in') GROUP BY tenant_id, session_id, turn;

CREATE MATERIALIZED VIEW IF NOT EXISTS mv_call_audio TO call_audio AS
SELECT tenant_id, session_id, toUInt32(intDiv(greatest(0, sample_index), 60 * greatest(1, sample_rate_hz))) AS minute,
       max(toString(t.agent_id)) AS agent_id, min(occurred_at) AS began_at,
       maxMap(map(sample_index, toUInt32(intDiv(pcm_bytes, 2)))) AS frames,
       max(sample_index + intDiv(pcm_bytes, 2)) AS end_sample, max(sample_rate_hz) AS sample_rate
FROM audio_frames AS t GROUP BY tenant_id, session_id, minute;

-- What was there before the rollups.
INSERT INTO turn_costs (tenant_id, session_id, turn, agent_id, began_at, stt_ms, caller_ms)
SELECT tenant_id, session_id, turn, max(toString(t.agent_id)), min(occurred_at), maxMap(map(t.revision, t.compute_ms)),
       maxMap(if(kind = 'final', map(t.utterance, toFloat32(audio_end_ms - audio_start_ms)), map()))
FROM transcripts AS t WHERE kind IN ('partial', 'final') GROUP BY tenant_id, session_id, turn;

INSERT INTO turn_costs (tenant_id, session_id, turn, agent_id, began_at, intent_ms)
SELECT tenant_id, session_id, turn, max(toString(t.agent_id)), min(occurred_at), maxMap(map(t.revision, t.compute_ms))
FROM intents AS t WHERE kind = 'detected' GROUP BY tenant_id, session_id, turn;

INSERT INTO turn_costs (tenant_id, session_id, turn, agent_id, began_at, llm_ms, tool_ms, tokens_in, tokens_out)
SELECT tenant_id, session_id, turn, max(toString(t.agent_id)), min(occurred_at),
       maxMap(if(kind != 'tool_returned', map(event_id, t.compute_ms), map())),
       maxMap(if(kind = 'tool_returned', map(event_id, t.compute_ms), map())),
       maxMap(map(event_id, toUInt32(greatest(0, t.tokens_in)))),
       maxMap(map(event_id, toUInt32(greatest(0, t.tokens_out))))
FROM responses AS t WHERE compute_ms > 0 OR t.tokens_in > 0 OR t.tokens_out > 0
GROUP BY tenant_id, session_id, turn;

INSERT INTO turn_costs (tenant_id, session_id, turn, agent_id, began_at, tts_ms, agent_ms)
SELECT tenant_id, session_id, turn, max(toString(t.agent_id)), min(occurred_at), maxMap(map(event_id, t.compute_ms)),
       maxMap(map(event_id, toFloat32(pcm_bytes * 500 / greatest(1, sample_rate_hz))))
FROM speech_chunks AS t WHERE kind = 'audio' GROUP BY tenant_id, session_id, turn;

INSERT INTO turn_costs (tenant_id, session_id, turn, agent_id, began_at, heard_ms)
SELECT tenant_id, session_id, turn, max(toString(t.agent_id)), min(occurred_at), max(t.heard_ms)
FROM controls AS t WHERE kind IN ('playout', 'barge_in') GROUP BY tenant_id, session_id, turn;

INSERT INTO call_audio (tenant_id, session_id, minute, agent_id, began_at, frames, end_sample, sample_rate)
SELECT tenant_id, session_id, toUInt32(intDiv(greatest(0, sample_index), 60 * greatest(1, sample_rate_hz))) AS minute,
       max(toString(t.agent_id)), min(occurred_at), maxMap(map(sample_index, toUInt32(intDiv(pcm_bytes, 2)))),
       max(sample_index + intDiv(pcm_bytes, 2)), max(sample_rate_hz)
FROM audio_frames AS t GROUP BY tenant_id, session_id, minute;

-- The views.

DROP VIEW IF EXISTS latencies;

CREATE VIEW latencies
(
    tenant_id  LowCardinality(String) COMMENT 'The tenant that owns the call.',
    agent_id   String COMMENT 'The agent.',
    session_id UUID COMMENT 'The call.',
    turn       Int32 COMMENT 'The turn.',
    at         DateTime64(6, 'UTC') COMMENT 'When the caller stopped speaking.',
    stage      LowCardinality(String) COMMENT 'stt: until the final transcript. intent, llm, tts: until the stage''s first result. total: until the first audio of the reply.',
    ms         Float64 COMMENT 'Milliseconds.'
)
AS SELECT tenant_id, toString(t.agent_id) AS agent_id, session_id, turn, assumeNotNull(speech_ended_at) AS at,
       step.1 AS stage, assumeNotNull(step.2) AS ms
FROM turns AS t
ARRAY JOIN [('stt', stt_ms), ('intent', intent_ms), ('llm', llm_ms), ('tts', tts_ms), ('total', total_ms)] AS step
WHERE t.speech_ended_at IS NOT NULL AND step.2 IS NOT NULL
COMMENT 'How long each stage took, one row for each turn and stage.';

DROP VIEW IF EXISTS latency_by_minute;

CREATE VIEW latency_by_minute
(
    tenant_id LowCardinality(String) COMMENT 'The tenant that owns the calls.',
    agent_id  String COMMENT 'The agent.',
    minute    DateTime('UTC') COMMENT 'The minute in which the callers stopped speaking.',
    stage     LowCardinality(String) COMMENT 'stt, intent, llm, tts, or total: from the end of speech to the first audio.',
    turns     UInt64 COMMENT 'Turns that the stage had a result for.',
    p50_ms    Float64 COMMENT 'Half of them took no longer.',
    p95_ms    Float64 COMMENT '95 % of them took no longer.',
    p99_ms    Float64 COMMENT '99 % of them took no longer.',
    max_ms    Float64 COMMENT 'The longest.'
)
AS SELECT tenant_id, agent_id, toStartOfMinute(toDateTime(at, 'UTC')) AS minute, stage, count() AS turns,
       quantileExact(0.5)(ms) AS p50_ms, quantileExact(0.95)(ms) AS p95_ms, quantileExact(0.99)(ms) AS p99_ms,
       max(ms) AS max_ms
FROM latencies GROUP BY tenant_id, agent_id, minute, stage
COMMENT 'Latency of every stage by minute, tenant and agent.';

DROP VIEW IF EXISTS costs;

CREATE VIEW costs
(
    tenant_id  LowCardinality(String) COMMENT 'The tenant that owns the call.',
    agent_id   String COMMENT 'The agent.',
    session_id UUID COMMENT 'The call.',
    turn       Int32 COMMENT 'The turn; 0 is the greeting.',
    began_at   DateTime64(6, 'UTC') COMMENT 'When the first event that cost something happened.',
    stt_ms     Float64 COMMENT 'Milliseconds of recognition, of partial readings, too.',
    intent_ms  Float64 COMMENT 'Milliseconds of understanding.',
    llm_ms     Float64 COMMENT 'Milliseconds of the language model and of looking up knowledge.',
    tts_ms     Float64 COMMENT 'Milliseconds of the voice.',
    model_ms   Float64 COMMENT 'The four together. What was made ahead for words that did not stay is in it.',
    tool_ms    Float64 COMMENT 'Milliseconds that other systems took.',
    tokens_in  UInt64 COMMENT 'Tokens that the language model read.',
    tokens_out UInt64 COMMENT 'Tokens that it made.',
    caller_s   Float64 COMMENT 'Seconds of the caller''s speech.',
    agent_s    Float64 COMMENT 'Seconds of speech that were made.',
    heard_s    Float64 COMMENT 'Seconds of it that the caller has heard, as far as the client said so.'
)
AS SELECT tenant_id, max(toString(t.agent_id)) AS agent_id, session_id, turn, min(t.began_at) AS began_at,
       arraySum(mapValues(maxMap(t.stt_ms))) AS stt_ms, arraySum(mapValues(maxMap(t.intent_ms))) AS intent_ms,
       arraySum(mapValues(maxMap(t.llm_ms))) AS llm_ms, arraySum(mapValues(maxMap(t.tts_ms))) AS tts_ms,
       stt_ms + intent_ms + llm_ms + tts_ms AS model_ms, arraySum(mapValues(maxMap(t.tool_ms))) AS tool_ms,
       arraySum(mapValues(maxMap(t.tokens_in))) AS tokens_in, arraySum(mapValues(maxMap(t.tokens_out))) AS tokens_out,
       arraySum(mapValues(maxMap(t.caller_ms))) / 1000 AS caller_s,
       arraySum(mapValues(maxMap(t.agent_ms))) / 1000 AS agent_s, max(t.heard_ms) / 1000 AS heard_s
FROM turn_costs AS t GROUP BY tenant_id, session_id, turn
COMMENT 'What each turn cost: model time, tokens, seconds of audio.';

DROP VIEW IF EXISTS audio;

CREATE VIEW audio
(
    tenant_id  LowCardinality(String) COMMENT 'The tenant that owns the call.',
    agent_id   String COMMENT 'The agent.',
    session_id UUID COMMENT 'The call.',
    began_at   DateTime64(6, 'UTC') COMMENT 'When the first frame of the caller''s audio was written.',
    frames     UInt64 COMMENT 'Frames of the caller''s audio.',
    received_s Float64 COMMENT 'Seconds of the caller''s audio, silence included.',
    lost_s     Float64 COMMENT 'Seconds of it that did not arrive: gaps between samples.',
    caller_s   Float64 COMMENT 'Seconds of it that were speech with words.',
    agent_s    Float64 COMMENT 'Seconds of speech that were made for the agent.',
    heard_s    Float64 COMMENT 'Seconds of it that the caller has heard, as far as the client said so.'
)
AS SELECT f.tenant_id AS tenant_id, f.agent_id AS agent_id, f.session_id AS session_id, f.began_at AS began_at,
       f.frames AS frames, f.samples / f.rate AS received_s,
       greatest(0, f.end_sample - f.samples) / f.rate AS lost_s,
       c.caller_s AS caller_s, c.agent_s AS agent_s, c.heard_s AS heard_s
FROM
(
    SELECT tenant_id, session_id, max(m.agent_id) AS agent_id, min(m.began_at) AS began_at, sum(m.frames) AS frames,
           sum(m.samples) AS samples, max(m.end_sample) AS end_sample, greatest(1, max(m.rate)) AS rate
    FROM
    (
        SELECT tenant_id, session_id, minute, max(toString(a.agent_id)) AS agent_id, min(a.began_at) AS began_at,
               maxMap(a.frames) AS all_frames, length(all_frames) AS frames, arraySum(mapValues(all_frames)) AS samples,
               max(a.end_sample) AS end_sample, max(a.sample_rate) AS rate
        FROM call_audio AS a GROUP BY tenant_id, session_id, minute
    ) AS m GROUP BY tenant_id, session_id
) AS f
LEFT JOIN
(
    SELECT tenant_id, session_id, sum(k.caller_s) AS caller_s, sum(k.agent_s) AS agent_s, sum(k.heard_s) AS heard_s
    FROM costs AS k GROUP BY tenant_id, session_id
) AS c ON c.tenant_id = f.tenant_id AND c.session_id = f.session_id
COMMENT 'Audio of each call: what arrived, what was lost, who spoke how long.';

DROP VIEW IF EXISTS tool_calls;

CREATE VIEW tool_calls
(
    tenant_id    LowCardinality(String) COMMENT 'The tenant that owns the call.',
    agent_id     String COMMENT 'The agent.',
    session_id   UUID COMMENT 'The call.',
    turn         Int32 COMMENT 'The turn.',
    tool         LowCardinality(String) COMMENT 'Name of the tool.',
    tool_call_id String COMMENT 'Idempotency key, the same on every retry.',
    intent       LowCardinality(String) COMMENT 'The intent that led to it.',
    called_at    DateTime64(6, 'UTC') COMMENT 'When it was called.',
    returned_at  Nullable(DateTime64(6, 'UTC')) COMMENT 'When it answered or was given up; null while it is open.',
    duration_ms  Nullable(Float64) COMMENT 'Milliseconds between the two.',
    outcome      LowCardinality(String) COMMENT 'ok, not_found, rejected, failed, timeout; empty while it is open.',
    arguments    String COMMENT 'Arguments as a JSON object.',
    result       String COMMENT 'What the tool answered, as JSON.'
)
AS SELECT tenant_id, any(toString(r.agent_id)) AS agent_id, session_id, turn, any(r.tool) AS tool, tool_call_id,
       any(r.intent) AS intent, min(r.occurred_at) AS called_at,
       minOrNullIf(r.occurred_at, kind = 'tool_returned') AS returned_at,
       dateDiff('microsecond', called_at, returned_at) / 1000 AS duration_ms,
       anyIf(r.outcome, kind = 'tool_returned') AS outcome, anyIf(r.arguments, kind = 'tool_called') AS arguments,
       anyIf(r.result, kind = 'tool_returned') AS result
FROM responses AS r FINAL WHERE kind IN ('tool_called', 'tool_returned')
GROUP BY tenant_id, session_id, turn, tool_call_id
COMMENT 'Calls into other systems, one row each.';

DROP VIEW IF EXISTS dialogue;

CREATE VIEW dialogue
(
    tenant_id  LowCardinality(String) COMMENT 'The tenant that owns the call.',
    agent_id   String COMMENT 'The agent.',
    session_id UUID COMMENT 'The call.',
    turn       Int32 COMMENT 'The turn; 0 is the greeting.',
    at         DateTime64(6, 'UTC') COMMENT 'When the words were final; of the greeting, when it was complete.',
    heard      String COMMENT 'What the caller said.',
    confidence Float32 COMMENT 'How sure recognition is of it, 0 to 1.',
    language   LowCardinality(String) COMMENT 'BCP 47 language heard.',
    failure    LowCardinality(String) COMMENT 'Why no engine could read it; empty where one did.',
    intent     LowCardinality(String) COMMENT 'What the caller wanted; none where no intent of the agent fits.',
    intent_confidence Float32 COMMENT 'How sure that is, 0 to 1.',
    sentiment  Float32 COMMENT '-1 (upset) to 1 (pleased).',
    said       String COMMENT 'What the agent answered.',
    source     LowCardinality(String) COMMENT 'Where its words come from: greeting, template, knowledge, model, clarification, apology, escalation.',
    outcome    LowCardinality(String) COMMENT 'answered, escalated, ended, failed; cancelled where the answer was cut; empty while it is open.'
)
AS SELECT tenant_id, max(d.agent_id) AS agent_id, session_id, turn, min(d.at) AS at,
       max(d.heard) AS heard, max(d.confidence) AS confidence, max(d.language) AS language, max(d.failure) AS failure,
       max(d.intent) AS intent, max(d.intent_confidence) AS intent_confidence, sum(d.sentiment) AS sentiment,
       max(d.said) AS said, max(d.source) AS source, max(d.outcome) AS outcome
FROM
(
    SELECT tenant_id, toString(t.agent_id) AS agent_id, session_id, turn, occurred_at AS at, text AS heard,
           t.confidence AS confidence, toString(t.language) AS language, toString(t.failure) AS failure, '' AS intent,
           toFloat32(0) AS intent_confidence, toFloat32(0) AS sentiment, '' AS said, '' AS source, '' AS outcome
    FROM transcripts AS t FINAL WHERE kind = 'final'
    UNION ALL
    SELECT tenant_id, toString(i.agent_id), session_id, turn, occurred_at, '', 0, '', '', toString(i.intent),
           i.confidence, i.sentiment, '', '', ''
    FROM intents AS i FINAL WHERE kind = 'detected' AND committed LIMIT 1 BY session_id, turn
    UNION ALL
    SELECT tenant_id, toString(r.agent_id), session_id, turn, occurred_at, '', 0, '', '', '', 0, 0, r.text,
           toString(r.source), if(kind = 'cancelled', 'cancelled', toString(r.outcome))
    FROM responses AS r FINAL WHERE kind IN ('completed', 'cancelled') AND committed LIMIT 1 BY session_id, turn
) AS d GROUP BY tenant_id, session_id, turn
COMMENT 'What was said, one row for each turn.';

DROP VIEW IF EXISTS errors;

CREATE VIEW errors
(
    tenant_id  LowCardinality(String) COMMENT 'The tenant concerned; empty where it could not be told.',
    agent_id   String COMMENT 'The agent; empty where none is meant.',
    session_id UUID COMMENT 'The call; of a component, what stands for its process.',
    turn       Int32 COMMENT 'The turn.',
    at         DateTime64(6, 'UTC') COMMENT 'When.',
    stage      LowCardinality(String) COMMENT 'Where: api, stt, intent, llm, tts, tools, webhooks, clickhouse.',
    kind       LowCardinality(String) COMMENT 'unheard: no engine could read an utterance. tool: another system failed. reply: no answer could be given. voice: no voice could be made. call: the call ended by a failure. delivery: a message was given up. breaker: an engine was no longer asked. dead_letter: a record could not be used.',
    reason     String COMMENT 'Why, as a stable word; of breakers what was measured.'
)
AS
SELECT tenant_id, toString(t.agent_id) AS agent_id, session_id, turn, occurred_at AS at, 'stt' AS stage,
       'unheard' AS kind, toString(t.failure) AS reason
FROM transcripts AS t FINAL WHERE t.kind = 'final' AND t.failure != ''
UNION ALL
SELECT tenant_id, toString(r.agent_id), session_id, turn, occurred_at, 'tools', 'tool', toString(r.outcome)
FROM responses AS r FINAL WHERE r.kind = 'tool_returned' AND r.outcome IN ('failed', 'timeout')
UNION ALL
SELECT tenant_id, toString(r.agent_id), session_id, turn, occurred_at, 'llm', 'reply', toString(r.source)
FROM responses AS r FINAL WHERE r.kind = 'completed' AND r.committed AND r.outcome = 'failed'
UNION ALL
SELECT tenant_id, toString(c.agent_id), session_id, turn, occurred_at, 'tts', 'voice', 'text'
FROM speech_chunks AS c FINAL WHERE c.kind = 'text' AND c.committed
UNION ALL
SELECT tenant_id, toString(s.agent_id), session_id, turn, occurred_at, 'api', 'call', toString(s.reason)
FROM sessions AS s FINAL WHERE s.kind = 'ended' AND s.reason IN ('failed', 'connection_lost', 'shutdown')
UNION ALL
SELECT tenant_id, toString(d.agent_id), session_id, turn, occurred_at, 'webhooks', 'delivery', toString(d.reason)
FROM deliveries AS d FINAL WHERE d.kind = 'dead'
UNION ALL
SELECT tenant_id, toString(h.agent_id), session_id, turn, occurred_at, toString(h.component), 'breaker', h.reason
FROM health AS h FINAL WHERE h.kind = 'breaker_opened'
UNION ALL
SELECT tenant_id, toString(l.agent_id), session_id, turn, occurred_at, toString(l.stage), 'dead_letter', toString(l.reason)
FROM dead_letters AS l FINAL
COMMENT 'What went wrong, whatever it was.';

DROP VIEW IF EXISTS messages;

CREATE VIEW messages
(
    tenant_id    LowCardinality(String) COMMENT 'The tenant that owns the call.',
    session_id   UUID COMMENT 'The call.',
    endpoint_id  LowCardinality(String) COMMENT 'The subscription.',
    message_id   String COMMENT 'webhook-id, the same on every retry.',
    source_topic LowCardinality(String) COMMENT 'Topic of the event told.',
    first_at     DateTime64(6, 'UTC') COMMENT 'When it was first tried.',
    attempts     Int32 COMMENT 'How often it was tried.',
    outcome      LowCardinality(String) COMMENT 'delivered, dead (given up), or open: it will be tried again.',
    delivered_at Nullable(DateTime64(6, 'UTC')) COMMENT 'When it was accepted.',
    wait_ms      Nullable(Float64) COMMENT 'Milliseconds from the first try to there.',
    status_code  Int32 COMMENT 'HTTP status of the last try; 0 without an answer.'
)
AS SELECT tenant_id, session_id, endpoint_id, message_id, any(d.source_topic) AS source_topic,
       min(d.occurred_at) AS first_at, max(d.attempt) AS attempts,
       multiIf(countIf(kind = 'delivered') > 0, 'delivered', countIf(kind = 'dead') > 0, 'dead', 'open') AS outcome,
       minOrNullIf(d.occurred_at, kind = 'delivered') AS delivered_at,
       dateDiff('microsecond', first_at, delivered_at) / 1000 AS wait_ms,
       argMax(d.status_code, (d.attempt, d.occurred_at)) AS status_code
FROM deliveries AS d FINAL GROUP BY tenant_id, session_id, endpoint_id, message_id
COMMENT 'Messages to other systems, one row for each message and subscription.';

DROP VIEW IF EXISTS call_summaries;

CREATE VIEW call_summaries
(
    tenant_id    LowCardinality(String) COMMENT 'The tenant that owns the call.',
    agent_id     String COMMENT 'The agent.',
    session_id   UUID COMMENT 'The call.',
    channel      LowCardinality(String) COMMENT 'How the caller is connected: websocket, twilio, browser, ...',
    caller       String COMMENT 'Who calls; empty where it is not known.',
    language     LowCardinality(String) COMMENT 'BCP 47 language of the conversation.',
    started_at   DateTime64(6, 'UTC') COMMENT 'When it began.',
    ended_at     Nullable(DateTime64(6, 'UTC')) COMMENT 'When it ended; null while it runs.',
    duration_s   Nullable(Float64) COMMENT 'Its length in seconds, once it has ended.',
    reason       LowCardinality(String) COMMENT 'Why it ended: hung_up, completed, transferred, connection_lost, idle, too_long, shutdown, failed; empty while it runs.',
    turns        UInt64 COMMENT 'Utterances of the caller.',
    answered     UInt64 COMMENT 'Turns with an answer.',
    failed       UInt64 COMMENT 'Turns in which none could be given.',
    interrupted  UInt64 COMMENT 'Turns in which the caller spoke over the agent.',
    transferred  Bool COMMENT 'Whether it went on to a person.',
    first_intent LowCardinality(String) COMMENT 'What the caller wanted first.',
    last_intent  LowCardinality(String) COMMENT 'What the caller wanted last, leave-taking included.',
    sentiment    Float64 COMMENT 'Mean over the turns, -1 (upset) to 1 (pleased).',
    tools        UInt64 COMMENT 'Calls into other systems.',
    tool_errors  UInt64 COMMENT 'Those that failed or timed out.',
    p50_total_ms Nullable(Float64) COMMENT 'Median from the end of speech to the first audio.',
    max_total_ms Nullable(Float64) COMMENT 'The longest.',
    model_ms     Float64 COMMENT 'Milliseconds of model time.',
    tokens       UInt64 COMMENT 'Tokens, read and made.'
)
AS SELECT s.tenant_id AS tenant_id, s.agent_id AS agent_id, s.session_id AS session_id, s.channel AS channel,
       s.caller AS caller, s.language AS language, s.started_at AS started_at, s.ended_at AS ended_at,
       s.duration_s AS duration_s, s.reason AS reason, d.turns AS turns, d.answered AS answered, d.failed AS failed,
       t.interrupted AS interrupted, s.reason = 'transferred' OR d.escalated > 0 AS transferred,
       d.first_intent AS first_intent, d.last_intent AS last_intent, d.sentiment AS sentiment, o.tools AS tools,
       o.tool_errors AS tool_errors, t.p50_total_ms AS p50_total_ms, t.max_total_ms AS max_total_ms,
       k.model_ms AS model_ms, k.tokens AS tokens
FROM
(
    SELECT tenant_id, session_id, any(toString(e.agent_id)) AS agent_id, any(toString(e.channel)) AS channel,
           any(ifNull(e.caller, '')) AS caller, any(toString(e.language)) AS language,
           min(e.occurred_at) AS started_at, maxOrNullIf(e.occurred_at, kind = 'ended') AS ended_at,
           maxOrNullIf(e.duration_ms, kind = 'ended') / 1000 AS duration_s,
           anyIf(toString(e.reason), kind = 'ended') AS reason
    FROM sessions AS e FINAL GROUP BY tenant_id, session_id
) AS s
LEFT JOIN
(
    SELECT tenant_id, session_id, countIf(g.turn > 0) AS turns, countIf(g.turn > 0 AND g.outcome = 'answered') AS answered,
           countIf(g.outcome = 'failed') AS failed, countIf(g.outcome = 'escalated') AS escalated,
           argMinIf(toString(g.intent), g.turn, g.intent NOT IN ('', 'none')) AS first_intent,
           argMaxIf(toString(g.intent), g.turn, g.intent NOT IN ('', 'none')) AS last_intent,
           ifNotFinite(avgIf(g.sentiment, g.turn > 0), 0) AS sentiment
    FROM dialogue AS g GROUP BY tenant_id, session_id
) AS d ON d.tenant_id = s.tenant_id AND d.session_id = s.session_id
LEFT JOIN
(
    SELECT tenant_id, session_id, countIf(u.interrupted_at IS NOT NULL) AS interrupted,
           quantileExactOrNull(0.5)(u.total_ms) AS p50_total_ms, maxOrNull(u.total_ms) AS max_total_ms
    FROM turns AS u GROUP BY tenant_id, session_id
) AS t ON t.tenant_id = s.tenant_id AND t.session_id = s.session_id
LEFT JOIN
(
    SELECT tenant_id, session_id, count() AS tools, countIf(c.outcome IN ('failed', 'timeout')) AS tool_errors
    FROM tool_calls AS c GROUP BY tenant_id, session_id
) AS o ON o.tenant_id = s.tenant_id AND o.session_id = s.session_id
LEFT JOIN
(
    SELECT tenant_id, session_id, sum(c.model_ms) AS model_ms, sum(c.tokens_in) + sum(c.tokens_out) AS tokens
    FROM costs AS c GROUP BY tenant_id, session_id
) AS k ON k.tenant_id = s.tenant_id AND k.session_id = s.session_id
COMMENT 'Everything of a call in one row.';

-- Descriptions of what was there without any.
ALTER TABLE turn_times COMMENT COLUMN tenant_id 'The tenant that owns the call.';
ALTER TABLE turn_times COMMENT COLUMN session_id 'The call.';
ALTER TABLE turn_times COMMENT COLUMN turn 'The turn; 0 is the greeting.';
ALTER TABLE turn_times COMMENT COLUMN agent_id 'The agent.';
ALTER TABLE turn_times COMMENT COLUMN speech_ended_at 'When the caller''s last speech reached the gateway.';
ALTER TABLE turn_times COMMENT COLUMN final_at 'When the words were final.';
ALTER TABLE turn_times COMMENT COLUMN intent_at 'When the intent of the final words was there.';
ALTER TABLE turn_times COMMENT COLUMN first_sentence_at 'Of turns from before revisions were kept: the first sentence.';
ALTER TABLE turn_times COMMENT COLUMN first_audio_at 'Likewise: the first audio.';
ALTER TABLE turn_times COMMENT COLUMN completed_at 'When the answer was complete.';
ALTER TABLE turn_times COMMENT COLUMN interrupted_at 'When the caller spoke over the answer.';
ALTER TABLE turn_times COMMENT COLUMN final_revision 'The revision that became final.';
ALTER TABLE turn_times COMMENT COLUMN first_sentences 'When the first sentence was there, in microseconds since the epoch, by revision.';
ALTER TABLE turn_times COMMENT COLUMN first_audios 'When the first audio was there, likewise.';
ALTER TABLE turn_times MODIFY COMMENT 'Rollup of when each step of a turn was first there. Ask the view turns.';

ALTER TABLE turns COMMENT COLUMN tenant_id 'The tenant that owns the call.';
ALTER TABLE turns COMMENT COLUMN session_id 'The call.';
ALTER TABLE turns COMMENT COLUMN turn 'The turn; 0 is the greeting.';
ALTER TABLE turns COMMENT COLUMN agent_id 'The agent.';
ALTER TABLE turns COMMENT COLUMN speech_ended_at 'When the caller''s last speech reached the gateway: the start of every latency.';
ALTER TABLE turns COMMENT COLUMN final_at 'When the words were final.';
ALTER TABLE turns COMMENT COLUMN intent_at 'When the intent was there.';
ALTER TABLE turns COMMENT COLUMN revision 'The revision that became final.';
ALTER TABLE turns COMMENT COLUMN sentences 'When the first sentence for each revision was there, in microseconds since the epoch.';
ALTER TABLE turns COMMENT COLUMN audios 'When the first audio for each revision was there, likewise.';
ALTER TABLE turns COMMENT COLUMN first_sentence_at 'When the first sentence of the answer was there.';
ALTER TABLE turns COMMENT COLUMN first_audio_at 'When its first audio was there.';
ALTER TABLE turns COMMENT COLUMN completed_at 'When it was complete.';
ALTER TABLE turns COMMENT COLUMN interrupted_at 'When the caller spoke over it; null where nobody did.';
ALTER TABLE turns COMMENT COLUMN stt_ms 'Milliseconds from the end of speech to the final words.';
ALTER TABLE turns COMMENT COLUMN intent_ms 'From there to the intent.';
ALTER TABLE turns COMMENT COLUMN llm_ms 'From there to the first sentence; 0 where it was made ahead.';
ALTER TABLE turns COMMENT COLUMN tts_ms 'From there to the first audio, likewise.';
ALTER TABLE turns COMMENT COLUMN total_ms 'From the end of speech to the first audio that may be heard.';
ALTER TABLE turns MODIFY COMMENT 'When each step of a turn was first there, and how long each stage took.';

ALTER TABLE calls COMMENT COLUMN tenant_id 'The tenant that owns the call.';
ALTER TABLE calls COMMENT COLUMN session_id 'The call.';
ALTER TABLE calls COMMENT COLUMN agent_id 'The agent.';
ALTER TABLE calls COMMENT COLUMN channel 'How the caller is connected.';
ALTER TABLE calls COMMENT COLUMN started_at 'When it began.';
ALTER TABLE calls COMMENT COLUMN ended_at 'When it ended; null while it runs.';
ALTER TABLE calls COMMENT COLUMN duration_ms 'Its length in milliseconds; 0 while it runs.';
ALTER TABLE calls COMMENT COLUMN reason 'Why it ended; empty while it runs.';
ALTER TABLE calls MODIFY COMMENT 'Calls, one row each. The view call_summaries has more of each.';

ALTER TABLE speculation COMMENT COLUMN tenant_id 'The tenant that owns the call.';
ALTER TABLE speculation COMMENT COLUMN session_id 'The call.';
ALTER TABLE speculation COMMENT COLUMN agent_id 'The agent.';
ALTER TABLE speculation COMMENT COLUMN ahead 'Turns and revisions that replies were begun for ahead.';
ALTER TABLE speculation COMMENT COLUMN final 'Turns and revisions that became final.';
ALTER TABLE speculation COMMENT COLUMN begun 'How many were begun ahead.';
ALTER TABLE speculation COMMENT COLUMN used 'How many of them were heard.';
ALTER TABLE speculation COMMENT COLUMN void 'How many were for nothing.';
ALTER TABLE speculation MODIFY COMMENT 'Replies begun before the caller had surely finished, by call.';

ALTER TABLE migrations COMMENT COLUMN name 'File of the migration.';
ALTER TABLE migrations COMMENT COLUMN applied_at 'When it was applied.';
ALTER TABLE migrations MODIFY COMMENT 'Migrations of this database that were applied.';

ALTER TABLE heard COMMENT COLUMN tenant_id 'The tenant that owns the call.';
ALTER TABLE heard COMMENT COLUMN session_id 'The call.';
ALTER TABLE heard COMMENT COLUMN turn 'The turn.';
ALTER TABLE heard COMMENT COLUMN agent_id 'The agent.';
ALTER TABLE heard COMMENT COLUMN heard_text 'What the caller heard of the agent.';
ALTER TABLE heard COMMENT COLUMN interrupted 'Whether the caller spoke over it.';
ALTER TABLE heard MODIFY COMMENT 'What the caller heard of each turn, word by word.';
