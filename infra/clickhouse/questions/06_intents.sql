-- What do callers want, how surely was it understood, and how often was it answered?
SELECT intent, count() AS turns, round(100 * turns / sum(turns) OVER (), 1) AS percent,
       round(avg(intent_confidence), 2) AS mean_confidence, countIf(outcome IN ('answered', 'ended')) AS answered
FROM dialogue
WHERE at >= now() - INTERVAL 30 DAY AND turn > 0 AND intent != ''
GROUP BY intent
ORDER BY turns DESC, intent
