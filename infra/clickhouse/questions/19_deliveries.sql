-- Do messages reach the systems that subscribed to them, and how soon?
SELECT endpoint_id, count() AS messages, countIf(outcome = 'delivered') AS delivered, countIf(outcome = 'dead') AS dead,
       countIf(outcome = 'open') AS open, countIf(attempts > 1) AS tried_again, max(wait_ms) AS longest_wait_ms
FROM messages
WHERE first_at >= now() - INTERVAL 30 DAY
GROUP BY endpoint_id
ORDER BY endpoint_id
