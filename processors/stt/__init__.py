"""Speech to text: audio frames become transcripts."""
