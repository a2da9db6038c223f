-- Utterances that no engine could read are turns without words.

ALTER TABLE transcripts ADD COLUMN IF NOT EXISTS failure LowCardinality(String) COMMENT 'Why no engine could read the utterance: timeout, crashed, refused or invalid. Such a final has no text, yet it is a turn: the caller is asked to say it again. Empty for what was read.' AFTER compute_ms;
