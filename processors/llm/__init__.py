"""The conversation: what the agent says and does."""
