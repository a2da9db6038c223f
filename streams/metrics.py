"""Prometheus metrics of what a process reads from and writes to the log; the label is the client's name."""

from prometheus_client import Counter, Gauge

unacknowledged = Gauge("trunkline_log_unacknowledged", "Records that no broker has confirmed yet.", ["client"])
unwritten = Counter("trunkline_log_unwritten", "Records that could not be written.", ["client", "reason"])
waiting = Gauge("trunkline_log_waiting", "Records read from the log and not yet taken.", ["client"])
unopened = Counter("trunkline_log_unopened", "Events read without their personal fields: erased, or no key is here.")
