-- How soon is an event here after it happened?
SELECT topic, uniqExact(event_id) AS events, quantileExact(0.5)(ms) AS p50_ms, quantileExact(0.95)(ms) AS p95_ms,
       max(ms) AS max_ms
FROM
(
    SELECT 'voice.sessions' AS topic, event_id, occurred_at, dateDiff('millisecond', occurred_at, ingested_at) AS ms
    FROM sessions
    UNION ALL
    SELECT 'voice.transcripts', event_id, occurred_at, dateDiff('millisecond', occurred_at, ingested_at) FROM transcripts
    UNION ALL
    SELECT 'voice.intents', event_id, occurred_at, dateDiff('millisecond', occurred_at, ingested_at) FROM intents
    UNION ALL
    SELECT 'voice.responses', event_id, occurred_at, dateDiff('millisecond', occurred_at, ingested_at) FROM responses
    UNION ALL
    SELECT 'voice.audio.out', event_id, occurred_at, dateDiff('millisecond', occurred_at, ingested_at) FROM speech_chunks
)
WHERE occurred_at >= now() - INTERVAL 30 DAY
GROUP BY topic
ORDER BY topic
