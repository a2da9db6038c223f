"""The command line, `trunkline`."""
