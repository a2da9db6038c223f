-- How many calls ran at the same time, at most, on each day?
SELECT toDate(at) AS day, max(running) AS calls_at_once
FROM
(
    SELECT at, sum(change) OVER (ORDER BY at ASC, change ASC ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS running
    FROM
    (
        SELECT started_at AS at, 1 AS change FROM call_summaries WHERE started_at >= now() - INTERVAL 30 DAY
        UNION ALL
        SELECT assumeNotNull(ended_at) AS at, -1 AS change
        FROM call_summaries WHERE started_at >= now() - INTERVAL 30 DAY AND ended_at IS NOT NULL
    )
)
GROUP BY day
ORDER BY day
