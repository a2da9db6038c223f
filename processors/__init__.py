"""The stages of a call, and the consumers of its events."""
