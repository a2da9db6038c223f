-- In which minutes did callers wait longer than 1.2 s for 1 turn in 20?
SELECT tenant_id, agent_id, minute, turns, p50_ms, p95_ms, p99_ms
FROM latency_by_minute
WHERE minute >= now() - INTERVAL 30 DAY AND stage = 'total' AND p95_ms > 1200
ORDER BY minute, tenant_id, agent_id
