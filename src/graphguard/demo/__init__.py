"""A demo that runs by itself: a runaway agent on a real graph, without a budget and then with one."""
