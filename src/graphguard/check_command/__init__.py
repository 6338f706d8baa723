"""`graphguard check`: what the graphs of a `langgraph.json` guard, and what they do not."""
