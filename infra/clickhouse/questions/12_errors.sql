-- What goes wrong, where, and how many calls does it concern?
SELECT stage, kind, reason, count() AS times, uniqExact(session_id) AS calls
FROM errors
WHERE at >= now() - INTERVAL 30 DAY
GROUP BY stage, kind, reason
ORDER BY times DESC, stage, kind, reason
