"""`graphguard trips|show|replay|backtest`: the history of a checkpoint database, on the command line."""
