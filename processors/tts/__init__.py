"""The tts stage: sentences become speech."""
