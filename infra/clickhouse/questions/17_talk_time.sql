-- Who talks how much, and how much audio was lost on the way?
SELECT agent_id, count() AS calls, round(sum(received_s), 1) AS received_s, round(sum(lost_s), 1) AS lost_s,
       round(sum(caller_s), 1) AS caller_s, round(sum(agent_s), 1) AS agent_s, round(sum(heard_s), 1) AS heard_s
FROM audio
WHERE began_at >= now() - INTERVAL 30 DAY
GROUP BY agent_id
ORDER BY agent_id
