-- Who had to call again within a week, and for the same thing?
SELECT caller, count() AS calls, countIf(gap_s < 604800) AS again_within_a_week,
       countIf(gap_s < 604800 AND first_intent = before) AS for_the_same
FROM
(
    SELECT caller, first_intent, lagInFrame(first_intent) OVER w AS before,
           if(row_number() OVER w = 1, NULL, dateDiff('second', lagInFrame(started_at) OVER w, started_at)) AS gap_s
    FROM call_summaries
    WHERE started_at >= now() - INTERVAL 30 DAY AND caller != ''
    WINDOW w AS (PARTITION BY tenant_id, caller ORDER BY started_at ASC ROWS BETWEEN 1 PRECEDING AND CURRENT ROW)
)
GROUP BY caller
HAVING again_within_a_week > 0
ORDER BY again_within_a_week DESC, caller
LIMIT 100
