-- How long do callers wait, and which stage takes how much of it?
SELECT tenant_id, agent_id, stage, count() AS turns, quantileExact(0.5)(ms) AS p50_ms, quantileExact(0.95)(ms) AS p95_ms,
       quantileExact(0.99)(ms) AS p99_ms, max(ms) AS max_ms
FROM latencies
WHERE at >= now() - INTERVAL 30 DAY
GROUP BY tenant_id, agent_id, stage
ORDER BY tenant_id, agent_id, indexOf(['stt', 'intent', 'llm', 'tts', 'total'], stage)
