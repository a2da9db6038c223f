"""Prometheus metrics of one gateway. Labels are topics, channels and reasons: never words, callers or sessions."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_VOICE_SECONDS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0)


class Metrics:
    """One set for each app, so that several may live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.sessions = Gauge("trunkline_api_sessions", "Calls going on.", registry=self.registry)
        self.started = Counter("trunkline_api_sessions_started", "Calls taken.", ["channel"], registry=self.registry)
        self.ended = Counter(
            "trunkline_api_sessions_ended", "Calls ended.", ["channel", "reason"], registry=self.registry
        )
        self.resumed = Counter(
            "trunkline_api_sessions_resumed", "Calls whose callers came back.", ["channel"], registry=self.registry
        )
        self.refused = Counter("trunkline_api_refused", "Calls not taken.", ["reason"], registry=self.registry)
        self.frames_in = Counter(
            "trunkline_api_audio_frames_in", "Frames of callers' audio written.", registry=self.registry
        )
        self.audio_out = Counter(
            "trunkline_api_audio_chunks_out", "Pieces of speech handed to callers.", registry=self.registry
        )
        self.errors = Counter(
            "trunkline_api_errors", "Error messages to clients.", ["channel", "code"], registry=self.registry
        )
        self.dropped = Counter(
            "trunkline_api_dropped",
            "What a full queue or a rule did not take.",
            ["queue", "policy"],
            registry=self.registry,
        )
        self.paused_seconds = Counter(
            "trunkline_api_paused_seconds", "Time that too fast clients were not read.", registry=self.registry
        )
        self.queue_depth = Gauge(
            "trunkline_api_queue_depth",
            "Fullest queue of its kind among the calls.",
            ["queue", "unit"],
            registry=self.registry,
        )
        self.records = Counter(
            "trunkline_api_records", "Records read from the log.", ["outcome"], registry=self.registry
        )
        self.barge_ins = Counter("trunkline_api_barge_ins", "Turns that callers spoke over.", registry=self.registry)
        self.hushes = Counter("trunkline_api_hushes", "Turns that a sound held back.", registry=self.registry)
        self.voice_to_voice = Histogram(
            "trunkline_api_voice_to_voice_seconds",
            "From the caller's last speech at the gateway to the first audio of the reply leaving it.",
            buckets=_VOICE_SECONDS,
            registry=self.registry,
        )
        self.sockets = Gauge("trunkline_api_sockets", "Connections of callers.", registry=self.registry)
        self.load_level = Gauge(
            "trunkline_api_load_level",
            "Whether new calls are refused for the gateway's own load.",
            registry=self.registry,
        )
        self.load_steps = Counter(
            "trunkline_api_load_steps", "Changes of the gateway's load level.", ["direction"], registry=self.registry
        )
        self.load_lag = Gauge("trunkline_api_load_lag_seconds", "How late the event loop is.", registry=self.registry)
        self.reply_p95 = Gauge(
            "trunkline_api_reply_p95_seconds", "Voice to voice, 95th percentile of late.", registry=self.registry
        )
        self.reply_limit = Gauge(
            "trunkline_api_reply_limit_seconds", "Above it new calls are refused.", registry=self.registry
        )
        self.expected_utilisation = Gauge(
            "trunkline_api_expected_utilisation",
            "Share of a stage's engines' time, or the machine's, in use with all calls that have been taken.",
            ["component"],
            registry=self.registry,
        )
        self.calls_free = Gauge(
            "trunkline_api_calls_free",
            "How many more calls a stage's engines, or the machine, have time for before new ones are refused.",
            ["component"],
            registry=self.registry,
        )
        self.call_cost = Gauge(
            "trunkline_api_call_cost",
            "Share of a stage's engines' time, or the machine's, that a call is measured to take.",
            ["component"],
            registry=self.registry,
        )
