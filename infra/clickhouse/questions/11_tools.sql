-- How well do the systems behind the tools answer?
SELECT tool, count() AS calls, countIf(outcome = 'ok') AS ok, countIf(outcome IN ('failed', 'timeout')) AS failed,
       countIf(outcome = '') AS open, quantileExactOrNull(0.5)(duration_ms) AS p50_ms, max(duration_ms) AS max_ms
FROM tool_calls
WHERE called_at >= now() - INTERVAL 30 DAY
GROUP BY tool
ORDER BY calls DESC, tool
