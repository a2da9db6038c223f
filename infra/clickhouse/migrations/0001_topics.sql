-- A table for each topic: its envelope, its fields, and where the record lies in Kafka. Audio is kept in Kafka only; here
-- is its length. Sorted for questions about a tenant's calls; a repeated event_id is one row after a merge (FINAL).

CREATE TABLE IF NOT EXISTS audio_frames
(
    event_id        UUID COMMENT 'UUID, deterministic: the same input record always yields the same id, so readers drop repeats by it.',
    session_id      UUID COMMENT 'UUID of the call; also the Kafka key (UTF-8).',
    tenant_id       LowCardinality(String) COMMENT 'The tenant that owns the call.',
    agent_id        LowCardinality(String) COMMENT 'The agent that answers the call: the name of its YAML file. Carried by every event, so that no stage has to join topics to know whose rules apply.',
    turn            Int32 COMMENT 'Turn of the conversation: 0 is the greeting, n the caller''s n-th utterance and its reply.',
    seq             Int64 COMMENT 'Position among the events of this session written by the same stage; grows by one.' CODEC(Delta, ZSTD(1)),
    occurred_at     DateTime64(6, 'UTC') COMMENT 'When it happened, microseconds since the epoch, UTC.' CODEC(Delta, ZSTD(1)),
    causation_id    Nullable(UUID) COMMENT 'event_id of the event that caused this one; null for what came from outside.',
    pcm_bytes       UInt32 COMMENT 'Bytes of audio; the audio itself is in Kafka.',
    sample_index    Int64 COMMENT 'Index of the first sample in the caller''s stream since the call began.' CODEC(Delta, ZSTD(1)),
    sample_rate_hz  Int32 COMMENT 'Samples a second; 16000.',
    captured_at     DateTime64(6, 'UTC') COMMENT 'When its last sample reached the gateway, microseconds since the epoch, UTC.' CODEC(Delta, ZSTD(1)),
    kafka_partition UInt16 COMMENT 'Partition of the record; the topic is the table''s.',
    kafka_offset    UInt64 COMMENT 'Offset of the record.' CODEC(Delta, ZSTD(1)),
    ingested_at     DateTime64(6, 'UTC') DEFAULT now64(6, 'UTC') COMMENT 'When the row was written.' CODEC(Delta, ZSTD(1))
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(occurred_at)
ORDER BY (tenant_id, session_id, turn, seq, event_id)
TTL toDateTime(occurred_at) + toIntervalDay(32) DELETE
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'voice.audio.in: A piece of the caller''s audio, in order, without gaps in sample_index unless audio was lost on the way.';

CREATE TABLE IF NOT EXISTS controls
(
    event_id        UUID COMMENT 'UUID, deterministic: the same input record always yields the same id, so readers drop repeats by it.',
    session_id      UUID COMMENT 'UUID of the call; also the Kafka key (UTF-8).',
    tenant_id       LowCardinality(String) COMMENT 'The tenant that owns the call.',
    agent_id        LowCardinality(String) COMMENT 'The agent that answers the call: the name of its YAML file. Carried by every event, so that no stage has to join topics to know whose rules apply.',
    turn            Int32 COMMENT 'Turn of the conversation: 0 is the greeting, n the caller''s n-th utterance and its reply.',
    seq             Int64 COMMENT 'Position among the events of this session written by the same stage; grows by one.' CODEC(Delta, ZSTD(1)),
    occurred_at     DateTime64(6, 'UTC') COMMENT 'When it happened, microseconds since the epoch, UTC.' CODEC(Delta, ZSTD(1)),
    causation_id    Nullable(UUID) COMMENT 'event_id of the event that caused this one; null for what came from outside.',
    kind            LowCardinality(String) COMMENT 'barge_in: the caller spoke over the agent; the turn''s remaining speech is void. dtmf: a key was pressed. playout: how much of a turn the caller has heard. transfer, hang_up: end of the agent''s part. erase: forget the call.',
    digit           String COMMENT 'The key: 0-9, *, #, A-D.',
    heard_ms        Int32 COMMENT 'Milliseconds of the turn''s speech that the caller has heard.',
    sentence        Int32 COMMENT 'The sentence that was being heard.',
    target          String COMMENT 'Where to transfer to.',
    reason          LowCardinality(String) COMMENT 'Why, for people.',
    kafka_partition UInt16 COMMENT 'Partition of the record; the topic is the table''s.',
    kafka_offset    UInt64 COMMENT 'Offset of the record.' CODEC(Delta, ZSTD(1)),
    ingested_at     DateTime64(6, 'UTC') DEFAULT now64(6, 'UTC') COMMENT 'When the row was written.' CODEC(Delta, ZSTD(1))
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(occurred_at)
ORDER BY (tenant_id, session_id, turn, seq, event_id)
TTL toDateTime(occurred_at) + toIntervalDay(400) DELETE
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'voice.control: What steers a call besides speech.';

CREATE TABLE IF NOT EXISTS dead_letters
(
    event_id         UUID COMMENT 'UUID, deterministic: the same input record always yields the same id, so readers drop repeats by it.',
    session_id       UUID COMMENT 'UUID of the call; also the Kafka key (UTF-8).',
    tenant_id        LowCardinality(String) COMMENT 'The tenant that owns the call.',
    agent_id         LowCardinality(String) COMMENT 'The agent that answers the call: the name of its YAML file. Carried by every event, so that no stage has to join topics to know whose rules apply.',
    turn             Int32 COMMENT 'Turn of the conversation: 0 is the greeting, n the caller''s n-th utterance and its reply.',
    seq              Int64 COMMENT 'Position among the events of this session written by the same stage; grows by one.' CODEC(Delta, ZSTD(1)),
    occurred_at      DateTime64(6, 'UTC') COMMENT 'When it happened, microseconds since the epoch, UTC.' CODEC(Delta, ZSTD(1)),
    causation_id     Nullable(UUID) COMMENT 'event_id of the event that caused this one; null for what came from outside.',
    source_topic     LowCardinality(String) COMMENT 'Topic it was on.',
    source_partition Int32 COMMENT 'Its partition.',
    source_offset    Int64 COMMENT 'Its offset.',
    stage            LowCardinality(String) COMMENT 'The stage that could not process it.',
    reason           LowCardinality(String) COMMENT 'A stable word: bad_frame, unknown_schema, truncated, wrong_key, oversize, invalid_field, unknown_agent, ...',
    detail           String COMMENT 'What was expected, for people; never the caller''s words.',
    record_key       Nullable(String) COMMENT 'The original key.' CODEC(ZSTD(3)),
    record_value     Nullable(String) COMMENT 'The original value.' CODEC(ZSTD(3)),
    record_headers   Map(String, String) COMMENT 'The original headers.' CODEC(ZSTD(3)),
    kafka_partition  UInt16 COMMENT 'Partition of the record; the topic is the table''s.',
    kafka_offset     UInt64 COMMENT 'Offset of the record.' CODEC(Delta, ZSTD(1)),
    ingested_at      DateTime64(6, 'UTC') DEFAULT now64(6, 'UTC') COMMENT 'When the row was written.' CODEC(Delta, ZSTD(1))
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(occurred_at)
ORDER BY (tenant_id, session_id, turn, seq, event_id)
TTL toDateTime(occurred_at) + toIntervalDay(92) DELETE
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'voice.deadletters: A record that could not be processed, whole.';

CREATE TABLE IF NOT EXISTS deliveries
(
    event_id         UUID COMMENT 'UUID, deterministic: the same input record always yields the same id, so readers drop repeats by it.',
    session_id       UUID COMMENT 'UUID of the call; also the Kafka key (UTF-8).',
    tenant_id        LowCardinality(String) COMMENT 'The tenant that owns the call.',
    agent_id         LowCardinality(String) COMMENT 'The agent that answers the call: the name of its YAML file. Carried by every event, so that no stage has to join topics to know whose rules apply.',
    turn             Int32 COMMENT 'Turn of the conversation: 0 is the greeting, n the caller''s n-th utterance and its reply.',
    seq              Int64 COMMENT 'Position among the events of this session written by the same stage; grows by one.' CODEC(Delta, ZSTD(1)),
    occurred_at      DateTime64(6, 'UTC') COMMENT 'When it happened, microseconds since the epoch, UTC.' CODEC(Delta, ZSTD(1)),
    causation_id     Nullable(UUID) COMMENT 'event_id of the event that caused this one; null for what came from outside.',
    kind             LowCardinality(String) COMMENT 'attempted: will be tried again. delivered: accepted. dead: given up.',
    endpoint_id      LowCardinality(String) COMMENT 'The subscription.',
    message_id       String COMMENT 'webhook-id, the same on every retry.',
    source_topic     LowCardinality(String) COMMENT 'Topic of the event delivered.',
    source_partition Int32 COMMENT 'Its partition.',
    source_offset    Int64 COMMENT 'Its offset.',
    attempt          Int32 COMMENT 'Number of the attempt, from 1.',
    status_code      Int32 COMMENT 'HTTP status; 0 without an answer.',
    duration_ms      Float32 COMMENT 'How long the attempt took.',
    reason           LowCardinality(String) COMMENT 'Why it failed.',
    kafka_partition  UInt16 COMMENT 'Partition of the record; the topic is the table''s.',
    kafka_offset     UInt64 COMMENT 'Offset of the record.' CODEC(Delta, ZSTD(1)),
    ingested_at      DateTime64(6, 'UTC') DEFAULT now64(6, 'UTC') COMMENT 'When the row was written.' CODEC(Delta, ZSTD(1))
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(occurred_at)
ORDER BY (tenant_id, session_id, turn, seq, event_id)
TTL toDateTime(occurred_at) + toIntervalDay(92) DELETE
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'voice.deliveries: An attempt to tell another system of an event.';

CREATE TABLE IF NOT EXISTS intents
(
    event_id        UUID COMMENT 'UUID, deterministic: the same input record always yields the same id, so readers drop repeats by it.',
    session_id      UUID COMMENT 'UUID of the call; also the Kafka key (UTF-8).',
    tenant_id       LowCardinality(String) COMMENT 'The tenant that owns the call.',
    agent_id        LowCardinality(String) COMMENT 'The agent that answers the call: the name of its YAML file. Carried by every event, so that no stage has to join topics to know whose rules apply.',
    turn            Int32 COMMENT 'Turn of the conversation: 0 is the greeting, n the caller''s n-th utterance and its reply.',
    seq             Int64 COMMENT 'Position among the events of this session written by the same stage; grows by one.' CODEC(Delta, ZSTD(1)),
    occurred_at     DateTime64(6, 'UTC') COMMENT 'When it happened, microseconds since the epoch, UTC.' CODEC(Delta, ZSTD(1)),
    causation_id    Nullable(UUID) COMMENT 'event_id of the event that caused this one; null for what came from outside.',
    kind            LowCardinality(String) COMMENT 'detected: the judgement on one transcript.',
    intent          LowCardinality(String) COMMENT 'Name of the agent''s intent, or none: no intent of the agent fits.',
    confidence      Float32 COMMENT '0 to 1.',
    alternatives    Array(Tuple(intent String, confidence Float32)) COMMENT 'The next best, best first.',
    entities        Array(Tuple(name String, value String, raw String, start Int32, end Int32)) COMMENT 'Values found in the words.',
    sentiment       Float32 COMMENT '-1 (upset) to 1 (pleased).',
    text            String COMMENT 'The transcript that was judged.' CODEC(ZSTD(3)),
    utterance       Int32 COMMENT 'The utterance that was judged.',
    revision        Int32 COMMENT 'Its revision.',
    committed       Bool COMMENT 'False while the caller may still go on: think and speak into the log, never act.',
    speech_ended_at Nullable(DateTime64(6, 'UTC')) COMMENT 'Copied from the transcript.',
    model           LowCardinality(String) COMMENT 'The model that judged.',
    compute_ms      Float32 COMMENT 'Milliseconds of model time that it cost.',
    kafka_partition UInt16 COMMENT 'Partition of the record; the topic is the table''s.',
    kafka_offset    UInt64 COMMENT 'Offset of the record.' CODEC(Delta, ZSTD(1)),
    ingested_at     DateTime64(6, 'UTC') DEFAULT now64(6, 'UTC') COMMENT 'When the row was written.' CODEC(Delta, ZSTD(1))
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(occurred_at)
ORDER BY (tenant_id, session_id, turn, seq, event_id)
TTL toDateTime(occurred_at) + toIntervalDay(400) DELETE
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'voice.intents: What the caller wants.';

CREATE TABLE IF NOT EXISTS responses
(
    event_id        UUID COMMENT 'UUID, deterministic: the same input record always yields the same id, so readers drop repeats by it.',
    session_id      UUID COMMENT 'UUID of the call; also the Kafka key (UTF-8).',
    tenant_id       LowCardinality(String) COMMENT 'The tenant that owns the call.',
    agent_id        LowCardinality(String) COMMENT 'The agent that answers the call: the name of its YAML file. Carried by every event, so that no stage has to join topics to know whose rules apply.',
    turn            Int32 COMMENT 'Turn of the conversation: 0 is the greeting, n the caller''s n-th utterance and its reply.',
    seq             Int64 COMMENT 'Position among the events of this session written by the same stage; grows by one.' CODEC(Delta, ZSTD(1)),
    occurred_at     DateTime64(6, 'UTC') COMMENT 'When it happened, microseconds since the epoch, UTC.' CODEC(Delta, ZSTD(1)),
    causation_id    Nullable(UUID) COMMENT 'event_id of the event that caused this one; null for what came from outside.',
    kind            LowCardinality(String) COMMENT 'sentence: one sentence to be spoken. tool_called / tool_returned: around an effect in another system. completed: nothing more comes for this turn. cancelled: the rest was dropped, for a barge-in or because the caller went on.',
    sentence        Int32 COMMENT 'Index of the sentence in its turn, from 0; for completed, how many there were.',
    text            String COMMENT 'The sentence; for completed, all of them.' CODEC(ZSTD(3)),
    source          LowCardinality(String) COMMENT 'Where the words come from: greeting, template, knowledge, model, clarification, apology, escalation.',
    intent          LowCardinality(String) COMMENT 'The intent answered.',
    revision        Int32 COMMENT 'The transcript''s revision answered.',
    committed       Bool COMMENT 'False while the caller may still go on.',
    tool            LowCardinality(String) COMMENT 'Name of the tool.',
    tool_call_id    String COMMENT 'Idempotency key of the call, the same on every retry.',
    arguments       String COMMENT 'Arguments of the tool as a JSON object.',
    result          String COMMENT 'What the tool answered, as JSON.',
    outcome         LowCardinality(String) COMMENT 'Of a tool: ok, not_found, rejected, failed, timeout. Of completed: answered, escalated, ended, failed.',
    action          LowCardinality(String) COMMENT 'What the gateway shall do when this has been heard: hang_up, transfer; else empty.',
    action_target   String COMMENT 'Where to transfer to.',
    documents       Array(String) COMMENT 'Knowledge documents quoted.',
    speech_ended_at Nullable(DateTime64(6, 'UTC')) COMMENT 'Copied from the intent.',
    model           LowCardinality(String) COMMENT 'The model that made the words; empty for templates.',
    tokens_in       Int32 COMMENT 'Tokens read by the model.',
    tokens_out      Int32 COMMENT 'Tokens made by the model.',
    compute_ms      Float32 COMMENT 'Milliseconds of model or tool time that it cost.',
    kafka_partition UInt16 COMMENT 'Partition of the record; the topic is the table''s.',
    kafka_offset    UInt64 COMMENT 'Offset of the record.' CODEC(Delta, ZSTD(1)),
    ingested_at     DateTime64(6, 'UTC') DEFAULT now64(6, 'UTC') COMMENT 'When the row was written.' CODEC(Delta, ZSTD(1))
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(occurred_at)
ORDER BY (tenant_id, session_id, turn, seq, event_id)
TTL toDateTime(occurred_at) + toIntervalDay(400) DELETE
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'voice.responses: What the agent says and does.';

CREATE TABLE IF NOT EXISTS sessions
(
    event_id        UUID COMMENT 'UUID, deterministic: the same input record always yields the same id, so readers drop repeats by it.',
    session_id      UUID COMMENT 'UUID of the call; also the Kafka key (UTF-8).',
    tenant_id       LowCardinality(String) COMMENT 'The tenant that owns the call.',
    agent_id        LowCardinality(String) COMMENT 'The agent that answers the call: the name of its YAML file. Carried by every event, so that no stage has to join topics to know whose rules apply.',
    turn            Int32 COMMENT 'Turn of the conversation: 0 is the greeting, n the caller''s n-th utterance and its reply.',
    seq             Int64 COMMENT 'Position among the events of this session written by the same stage; grows by one.' CODEC(Delta, ZSTD(1)),
    occurred_at     DateTime64(6, 'UTC') COMMENT 'When it happened, microseconds since the epoch, UTC.' CODEC(Delta, ZSTD(1)),
    causation_id    Nullable(UUID) COMMENT 'event_id of the event that caused this one; null for what came from outside.',
    kind            LowCardinality(String) COMMENT 'What happened to the session.',
    channel         LowCardinality(String) COMMENT 'How the caller is connected: websocket, twilio, browser, ...',
    caller          Nullable(String) COMMENT 'Who calls: a telephone number or the caller''s id in the tenant''s systems.',
    language        LowCardinality(String) COMMENT 'BCP 47 language of the conversation.',
    context         Map(String, String) COMMENT 'What the tenant''s systems know of the caller, handed over at the start.',
    reason          LowCardinality(String) COMMENT 'Why it ended: hung_up, completed, transferred, failed, abandoned, shed; empty before.',
    duration_ms     Int64 COMMENT 'Length of the call in milliseconds, when it ended.',
    kafka_partition UInt16 COMMENT 'Partition of the record; the topic is the table''s.',
    kafka_offset    UInt64 COMMENT 'Offset of the record.' CODEC(Delta, ZSTD(1)),
    ingested_at     DateTime64(6, 'UTC') DEFAULT now64(6, 'UTC') COMMENT 'When the row was written.' CODEC(Delta, ZSTD(1))
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(occurred_at)
ORDER BY (tenant_id, session_id, turn, seq, event_id)
TTL toDateTime(occurred_at) + toIntervalDay(400) DELETE
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'voice.sessions: The life of a call.';

CREATE TABLE IF NOT EXISTS speech_chunks
(
    event_id         UUID COMMENT 'UUID, deterministic: the same input record always yields the same id, so readers drop repeats by it.',
    session_id       UUID COMMENT 'UUID of the call; also the Kafka key (UTF-8).',
    tenant_id        LowCardinality(String) COMMENT 'The tenant that owns the call.',
    agent_id         LowCardinality(String) COMMENT 'The agent that answers the call: the name of its YAML file. Carried by every event, so that no stage has to join topics to know whose rules apply.',
    turn             Int32 COMMENT 'Turn of the conversation: 0 is the greeting, n the caller''s n-th utterance and its reply.',
    seq              Int64 COMMENT 'Position among the events of this session written by the same stage; grows by one.' CODEC(Delta, ZSTD(1)),
    occurred_at      DateTime64(6, 'UTC') COMMENT 'When it happened, microseconds since the epoch, UTC.' CODEC(Delta, ZSTD(1)),
    causation_id     Nullable(UUID) COMMENT 'event_id of the event that caused this one; null for what came from outside.',
    kind             LowCardinality(String) COMMENT 'audio: PCM. end_of_turn: no more audio comes for the turn. text: no voice could be made, display the text instead.',
    pcm_bytes        UInt32 COMMENT 'Bytes of audio; the audio itself is in Kafka.',
    sample_rate_hz   Int32 COMMENT 'Samples a second.',
    sample_index     Int64 COMMENT 'Index of the first sample in the agent''s speech of this turn.' CODEC(Delta, ZSTD(1)),
    sentence         Int32 COMMENT 'The sentence it belongs to.',
    last_of_sentence Bool COMMENT 'True for the sentence''s last chunk.',
    text             String COMMENT 'The sentence''s words, on its first chunk.' CODEC(ZSTD(3)),
    revision         Int32 COMMENT 'The transcript''s revision answered.',
    committed        Bool COMMENT 'False while the caller may still go on: the gateway holds it back.',
    speech_ended_at  Nullable(DateTime64(6, 'UTC')) COMMENT 'Copied from the response.',
    model            LowCardinality(String) COMMENT 'The voice that spoke.',
    compute_ms       Float32 COMMENT 'Milliseconds of model time that it cost.',
    kafka_partition  UInt16 COMMENT 'Partition of the record; the topic is the table''s.',
    kafka_offset     UInt64 COMMENT 'Offset of the record.' CODEC(Delta, ZSTD(1)),
    ingested_at      DateTime64(6, 'UTC') DEFAULT now64(6, 'UTC') COMMENT 'When the row was written.' CODEC(Delta, ZSTD(1))
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(occurred_at)
ORDER BY (tenant_id, session_id, turn, seq, event_id)
TTL toDateTime(occurred_at) + toIntervalDay(32) DELETE
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'voice.audio.out: A piece of the agent''s speech.';

CREATE TABLE IF NOT EXISTS transcripts
(
    event_id        UUID COMMENT 'UUID, deterministic: the same input record always yields the same id, so readers drop repeats by it.',
    session_id      UUID COMMENT 'UUID of the call; also the Kafka key (UTF-8).',
    tenant_id       LowCardinality(String) COMMENT 'The tenant that owns the call.',
    agent_id        LowCardinality(String) COMMENT 'The agent that answers the call: the name of its YAML file. Carried by every event, so that no stage has to join topics to know whose rules apply.',
    turn            Int32 COMMENT 'Turn of the conversation: 0 is the greeting, n the caller''s n-th utterance and its reply.',
    seq             Int64 COMMENT 'Position among the events of this session written by the same stage; grows by one.' CODEC(Delta, ZSTD(1)),
    occurred_at     DateTime64(6, 'UTC') COMMENT 'When it happened, microseconds since the epoch, UTC.' CODEC(Delta, ZSTD(1)),
    causation_id    Nullable(UUID) COMMENT 'event_id of the event that caused this one; null for what came from outside.',
    kind            LowCardinality(String) COMMENT 'speech_started: the caller begins to speak. partial: the best reading so far; with pause_ms > 0 it is worth working on speculatively. speech_resumed: the caller went on, the last revision is void. final: the utterance is complete and commits its revision.',
    utterance       Int32 COMMENT 'Index of the utterance in the call, from 0; one that held no words gets no final.',
    revision        Int32 COMMENT 'Grows with each reading of the utterance; a final has the revision that it commits.',
    text            String COMMENT 'The words.' CODEC(ZSTD(3)),
    words           Array(Tuple(word String, start_ms Int32, end_ms Int32, confidence Float32)) COMMENT 'The words with their times.',
    confidence      Float32 COMMENT '0 to 1, for the whole text.',
    language        LowCardinality(String) COMMENT 'BCP 47 language heard.',
    pause_ms        Int32 COMMENT 'Silence after the last speech when this was decided, milliseconds.',
    audio_start_ms  Int32 COMMENT 'Start of the speech in milliseconds since the call''s first sample.',
    audio_end_ms    Int32 COMMENT 'End of the speech so far, likewise.',
    speech_ended_at Nullable(DateTime64(6, 'UTC')) COMMENT 'When the last speech reached the gateway (captured_at of its frame): the start of every latency.',
    model           LowCardinality(String) COMMENT 'The model that read it.',
    compute_ms      Float32 COMMENT 'Milliseconds of model time that it cost.',
    kafka_partition UInt16 COMMENT 'Partition of the record; the topic is the table''s.',
    kafka_offset    UInt64 COMMENT 'Offset of the record.' CODEC(Delta, ZSTD(1)),
    ingested_at     DateTime64(6, 'UTC') DEFAULT now64(6, 'UTC') COMMENT 'When the row was written.' CODEC(Delta, ZSTD(1))
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(occurred_at)
ORDER BY (tenant_id, session_id, turn, seq, event_id)
TTL toDateTime(occurred_at) + toIntervalDay(400) DELETE
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'voice.transcripts: What the caller is heard to say.';
