"""The simulator against runs that others measured, and against this machine's own."""
