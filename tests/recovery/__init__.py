"""Runs that are killed, and resumed in new processes."""
