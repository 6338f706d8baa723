"""Guarded graphs on a real `langgraph dev`."""
