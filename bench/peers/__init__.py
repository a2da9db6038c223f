"""Other voice frameworks, measured by the same callers on the same wire with models of the same catalogue."""
