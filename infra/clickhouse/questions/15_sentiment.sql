-- How do callers feel, and does a call leave them better or worse off?
SELECT agent_id, toDate(began) AS day, count() AS calls, round(avg(mean), 2) AS mean_sentiment,
       round(avg(last - first), 2) AS change
FROM
(
    SELECT any(agent_id) AS agent_id, session_id, min(at) AS began, avg(sentiment) AS mean,
           argMin(sentiment, turn) AS first, argMax(sentiment, turn) AS last
    FROM dialogue
    WHERE at >= now() - INTERVAL 30 DAY AND turn > 0
    GROUP BY session_id
)
GROUP BY agent_id, day
ORDER BY agent_id, day
