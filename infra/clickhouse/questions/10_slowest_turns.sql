-- Which turns were the slowest, and which stage was to blame?
SELECT session_id, turn, total_ms, stages[1].1 AS slowest_stage, stages[1].2 AS slowest_ms
FROM
(
    SELECT session_id, turn, maxIf(ms, stage = 'total') AS total_ms,
           arraySort(pair -> -pair.2, groupArrayIf((stage, ms), stage != 'total')) AS stages
    FROM latencies
    WHERE at >= now() - INTERVAL 30 DAY
    GROUP BY session_id, turn
)
ORDER BY total_ms DESC, session_id, turn
LIMIT 20
