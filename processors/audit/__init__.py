"""The audit record: hash chains over what the log stores, signed checkpoints, their verification, who read what."""
