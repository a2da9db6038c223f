-- What the caller heard of the agent, word by word: from playout reports and from where speech was interrupted.

ALTER TABLE controls ADD COLUMN IF NOT EXISTS heard_text String COMMENT 'barge_in: the words of that sentence that the caller had heard. playout: all its words. Of several events about a sentence the longest text counts; together they are what the caller heard of the agent, word by word.' AFTER sentence;

CREATE VIEW IF NOT EXISTS heard AS
SELECT tenant_id, session_id, turn, any(agent_id) AS agent_id,
       arrayStringConcat(arrayMap(said -> said.2, arraySort(groupArray((sentence, text)))), ' ') AS heard_text,
       max(interrupted) AS interrupted
FROM (
    SELECT tenant_id, session_id, turn, sentence, any(c.agent_id) AS agent_id,
           argMax(c.heard_text, length(c.heard_text)) AS text, max(c.kind = 'barge_in') AS interrupted
    FROM controls AS c FINAL
    WHERE kind IN ('barge_in', 'playout') GROUP BY tenant_id, session_id, turn, sentence
)
GROUP BY tenant_id, session_id, turn;
