"""The ClickHouse sink: every event of every topic in typed tables, once in effect."""
