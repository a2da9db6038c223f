-- How often do callers speak over the agent?
SELECT agent_id, countIf(completed_at IS NOT NULL OR interrupted_at IS NOT NULL) AS replies,
       countIf(interrupted_at IS NOT NULL) AS interrupted, round(100 * interrupted / replies, 1) AS percent
FROM turns
WHERE coalesce(speech_ended_at, completed_at) >= now() - INTERVAL 30 DAY
GROUP BY agent_id
ORDER BY agent_id
