"""Every way in and out: calls, REST, the console and the command line."""
