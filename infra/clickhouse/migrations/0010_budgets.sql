-- Refused calls, and error budgets that are spent too fast.

ALTER TABLE health ADD COLUMN IF NOT EXISTS refused Int32 COMMENT 'Of calls_refused: how many.' AFTER calls;
ALTER TABLE health ADD COLUMN IF NOT EXISTS objective LowCardinality(String) COMMENT 'Of burn_raised and burn_lowered: the tenant''s objective, such as session_success.' AFTER refused;
ALTER TABLE health ADD COLUMN IF NOT EXISTS burn_rate Float32 COMMENT 'Of burn_raised and burn_lowered: how many times faster than it bears the budget is spent, over window_s.' AFTER objective;
ALTER TABLE health ADD COLUMN IF NOT EXISTS window_s Int32 COMMENT 'Of burn_raised and burn_lowered: the longer of the two windows looked at, seconds.' AFTER burn_rate;

ALTER TABLE health COMMENT COLUMN kind 'breaker_opened: an engine is not asked any more, breaker_half_opened: it is being tried, breaker_closed: it answers again. load_raised, load_lowered: the platform does less for each call, or more again; level says how much. load_measured: how busy the process is, said again and again while it has calls. calls_refused: new calls were turned away for load since this was last said. burn_raised, burn_lowered: an error budget of the tenant is spent faster than its objective bears, or slower again.';
ALTER TABLE health COMMENT COLUMN level 'The load level reached: 0 ordinary, then one for each step of what is given up. Of burn_raised and burn_lowered: 0 none, 1 for the day''s work, 2 to wake somebody.';
