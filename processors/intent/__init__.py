"""The intent stage: what the caller wants."""
