"""`graphguard dashboard`: the dashboard alone, on a checkpoint database and a ledger."""
