"""Media dialects: each turns one kind of socket's frames into commands and the session's happenings into frames."""
