-- How do calls end?
SELECT if(reason = '', 'running', reason) AS ended, count() AS calls,
       round(100 * calls / sum(calls) OVER (), 1) AS percent, round(avg(duration_s), 1) AS mean_s
FROM call_summaries
WHERE started_at >= now() - INTERVAL 30 DAY
GROUP BY ended
ORDER BY calls DESC, ended
