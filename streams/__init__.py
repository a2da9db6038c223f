"""The log: topics, codec, producers and consumers, the broker, and the clock."""
