-- How well is speech recognised?
SELECT language, count() AS utterances, round(avgIf(confidence, failure = ''), 2) AS mean_confidence,
       countIf(failure = '' AND confidence < 0.5) AS unsure, countIf(failure != '') AS unheard
FROM dialogue
WHERE at >= now() - INTERVAL 30 DAY AND turn > 0
GROUP BY language
ORDER BY language
