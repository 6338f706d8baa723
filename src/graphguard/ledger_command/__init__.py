"""`graphguard ledger`: what a ledger knows, on the command line."""
