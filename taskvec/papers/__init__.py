"""Published tables: each one an experiment, what it needs, and ours beside theirs."""
