-- How many calls were there each day, and how long did they last?
SELECT tenant_id, agent_id, toDate(started_at) AS day, count() AS calls, uniqExact(caller) AS callers,
       round(avg(duration_s), 1) AS mean_s, round(sum(duration_s) / 60, 1) AS minutes
FROM call_summaries
WHERE started_at >= now() - INTERVAL 30 DAY
GROUP BY tenant_id, agent_id, day
ORDER BY tenant_id, agent_id, day
