"""The command line. What this package imports at start is light; commands import the rest when they run."""
