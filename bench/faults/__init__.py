"""The fault campaign, `python -m bench.faults`: breaks a platform in mid-sentence and counts what callers lost."""
