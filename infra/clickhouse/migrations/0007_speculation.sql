-- Replies are made for words before they are final. A turn's times are those of the revision that became final; what
-- was made for others was never heard.

ALTER TABLE intents COMMENT COLUMN kind 'detected: the judgement on one transcript. withdrawn: the caller went on, what was begun for the speculative judgements of the turn up to this revision is void.';
ALTER TABLE transcripts COMMENT COLUMN revision 'Grows with each reading of the turn; a final has the revision that it commits.';

ALTER TABLE turn_times ADD COLUMN IF NOT EXISTS final_revision SimpleAggregateFunction(max, Int32);
ALTER TABLE turn_times ADD COLUMN IF NOT EXISTS first_sentences SimpleAggregateFunction(minMap, Map(Int32, Int64)) COMMENT 'Microseconds since the epoch, by revision.';
ALTER TABLE turn_times ADD COLUMN IF NOT EXISTS first_audios SimpleAggregateFunction(minMap, Map(Int32, Int64)) COMMENT 'Likewise.';

DROP VIEW IF EXISTS mv_turn_transcripts;
DROP VIEW IF EXISTS mv_turn_sentences;
DROP VIEW IF EXISTS mv_turn_audio;

CREATE MATERIALIZED VIEW IF NOT EXISTS mv_turn_transcripts TO turn_times AS
SELECT tenant_id, session_id, turn, max(toString(t.agent_id)) AS agent_id, min(t.speech_ended_at) AS speech_ended_at,
       min(toNullable(occurred_at)) AS final_at, max(t.revision) AS final_revision
FROM transcripts AS t WHERE kind = 'final' GROUP BY tenant_id, session_id, turn;

CREATE MATERIALIZED VIEW IF NOT EXISTS mv_turn_sentences TO turn_times AS
SELECT tenant_id, session_id, turn, max(toString(t.agent_id)) AS agent_id,
       minMap(map(t.revision, toUnixTimestamp64Micro(t.occurred_at))) AS first_sentences
FROM responses AS t WHERE kind = 'sentence' GROUP BY tenant_id, session_id, turn;

CREATE MATERIALIZED VIEW IF NOT EXISTS mv_turn_audio TO turn_times AS
SELECT tenant_id, session_id, turn, max(toString(t.agent_id)) AS agent_id,
       minMap(map(t.revision, toUnixTimestamp64Micro(t.occurred_at))) AS first_audios
FROM speech_chunks AS t WHERE kind = 'audio' GROUP BY tenant_id, session_id, turn;

DROP VIEW IF EXISTS turns;

-- What is made ahead of the final costs a stage no time, and is not heard before the final.
CREATE VIEW turns AS
SELECT tenant_id, session_id, turn, max(t.agent_id) AS agent_id,
       min(t.speech_ended_at) AS speech_ended_at, min(t.final_at) AS final_at, min(t.intent_at) AS intent_at,
       max(t.final_revision) AS revision,
       minMap(t.first_sentences) AS sentences, minMap(t.first_audios) AS audios,
       if(mapContains(sentences, revision), fromUnixTimestamp64Micro(sentences[revision], 'UTC'),
          min(t.first_sentence_at)) AS first_sentence_at,
       if(mapContains(audios, revision), fromUnixTimestamp64Micro(audios[revision], 'UTC'),
          min(t.first_audio_at)) AS first_audio_at,
       min(t.completed_at) AS completed_at, min(t.interrupted_at) AS interrupted_at,
       dateDiff('microsecond', speech_ended_at, final_at) / 1000 AS stt_ms,
       greatest(0, dateDiff('microsecond', final_at, intent_at)) / 1000 AS intent_ms,
       greatest(0, dateDiff('microsecond', intent_at, first_sentence_at)) / 1000 AS llm_ms,
       greatest(0, dateDiff('microsecond', greatest(first_sentence_at, intent_at), first_audio_at)) / 1000 AS tts_ms,
       dateDiff('microsecond', speech_ended_at, greatest(first_audio_at, final_at)) / 1000 AS total_ms
FROM turn_times AS t GROUP BY tenant_id, session_id, turn;

CREATE VIEW IF NOT EXISTS speculation AS
SELECT tenant_id, session_id, any(i.agent_id) AS agent_id,
       groupUniqArrayIf((turn, revision), kind = 'detected' AND NOT committed) AS ahead,
       groupUniqArrayIf((turn, revision), kind = 'detected' AND committed) AS final,
       length(ahead) AS begun, length(arrayIntersect(ahead, final)) AS used, begun - used AS void
FROM intents AS i GROUP BY tenant_id, session_id;
