-- Which gateway wrote a session's event, so that a caller's way between gateways can be followed.

ALTER TABLE sessions ADD COLUMN IF NOT EXISTS gateway LowCardinality(String) COMMENT 'The gateway that writes this; the one that wrote the latest started or resumed holds the caller''s connection.' AFTER duration_ms;

ALTER TABLE sessions COMMENT COLUMN reason 'Why it ended: hung_up, completed, transferred, connection_lost, idle, too_long, shutdown, failed. Of an update: connection_lost, resumed, or empty.';
