"""Prometheus metrics of a stage worker. Labels are stages, roles and reasons: never words, callers or sessions."""

from prometheus_client import Counter, Gauge, Histogram

sessions = Gauge("trunkline_stage_sessions", "Sessions in memory.", ["stage"])
let_go = Counter("trunkline_stage_sessions_let_go", "Sessions that nobody ended and of which nothing came.", ["stage"])
open_units = Gauge("trunkline_stage_open", "Asks and unacknowledged events.", ["stage"])
dropped = Counter("trunkline_stage_dropped", "Records not used, by rule.", ["stage", "reason"])
emitted = Counter("trunkline_stage_emitted", "Events published.", ["stage", "type"])
refused = Counter("trunkline_stage_dead_letters", "Records sent to the dead letters.", ["stage", "reason"])
engine_errors = Counter("trunkline_stage_engine_errors", "Asks that failed.", ["stage", "role", "reason"])
ask_seconds = Histogram(
    "trunkline_stage_ask_seconds",
    "Time from an ask to its end.",
    ["stage", "role"],
    buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 10),
)
records_waiting = Gauge("trunkline_stage_records_waiting", "Records that arrived and wait for room.", ["stage"])
records_kept = Gauge(
    "trunkline_stage_records_kept", "Records processed but needed again if this process dies.", ["stage"]
)
load_level = Gauge(
    "trunkline_load_level", "What is given up for load: 0 nothing, 1 new calls, more: see limits.", ["component"]
)
load_steps = Counter("trunkline_load_steps", "Changes of the load level.", ["component", "direction"])
load_oldest = Gauge("trunkline_load_oldest_seconds", "Age of the oldest record not yet processed.", ["component"])
load_waiting = Gauge("trunkline_load_waiting_seconds", "How long asks wait for an engine.", ["component"])
load_lag = Gauge("trunkline_load_lag_seconds", "How late the event loop is.", ["component"])
load_utilisation = Gauge("trunkline_load_utilisation", "Share of the engines' time in use.", ["component"])
load_deadline_used = Gauge(
    "trunkline_load_deadline_used_ratio",
    "Largest share of its deadline that an ask waited for an answer, of those that wait and of the last 30 s; 1: late.",
    ["component"],
)
load_calls = Gauge("trunkline_load_calls", "Calls of which something came lately.", ["component"])
speculations = Counter(
    "trunkline_stage_speculations", "Work begun before the turn was over: begun, used, void.", ["stage", "what"]
)
speculated_ms = Counter(
    "trunkline_stage_speculated_milliseconds", "Engine time of such work, by what became of it.", ["stage", "what"]
)
