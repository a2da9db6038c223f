-- At which hours of the day do people call?
SELECT toHour(started_at) AS hour_utc, count() AS calls, round(100 * calls / sum(calls) OVER (), 1) AS percent
FROM call_summaries
WHERE started_at >= now() - INTERVAL 30 DAY
GROUP BY hour_utc
ORDER BY hour_utc
