-- What does a call cost: model time, tokens, seconds of audio?
SELECT tenant_id, agent_id, uniqExact(session_id) AS calls, round(sum(model_ms) / calls) AS model_ms_a_call,
       round(sum(stt_ms) / calls) AS stt_ms, round(sum(intent_ms) / calls) AS intent_ms,
       round(sum(llm_ms) / calls) AS llm_ms, round(sum(tts_ms) / calls) AS tts_ms,
       round(sum(tokens_in) / calls) AS tokens_in, round(sum(tokens_out) / calls) AS tokens_out,
       round(sum(caller_s + agent_s) / calls, 1) AS speech_s
FROM costs
WHERE began_at >= now() - INTERVAL 30 DAY
GROUP BY tenant_id, agent_id
ORDER BY tenant_id, agent_id
