-- What share of the calls was dealt with without a person, for each thing that callers want?
SELECT agent_id, if(first_intent = '', 'none', first_intent) AS wanted, count() AS calls,
       countIf(NOT transferred AND failed = 0) AS contained, round(100 * contained / calls, 1) AS percent
FROM call_summaries
WHERE started_at >= now() - INTERVAL 30 DAY AND ended_at IS NOT NULL
GROUP BY agent_id, wanted
ORDER BY calls DESC, agent_id, wanted
