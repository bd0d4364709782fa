"""Generation suites by lm-evaluation-harness: its tasks as files, the run on weights in memory, and the protocol."""
