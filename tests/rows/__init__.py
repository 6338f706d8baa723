"""The rows of the feature list: each of LangGraph's own features, on a guarded graph."""
