-- What did callers say that was not understood?
SELECT agent_id, heard, count() AS times, round(avg(confidence), 2) AS mean_confidence
FROM dialogue
WHERE at >= now() - INTERVAL 30 DAY AND turn > 0 AND intent = 'none' AND heard != ''
GROUP BY agent_id, heard
ORDER BY times DESC, agent_id, heard
LIMIT 100
