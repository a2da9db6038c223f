"""Measures the running system: `python -m bench`."""
