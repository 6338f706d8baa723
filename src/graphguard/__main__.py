"""`python -m graphguard` is the command `graphguard`."""

from graphguard.cli import main

if __name__ == "__main__":
    main()
