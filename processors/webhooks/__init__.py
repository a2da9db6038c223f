"""The webhook relay: events of calls to other systems over HTTP, signed, in order for each session, at least once."""
