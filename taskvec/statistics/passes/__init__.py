"""How models are run over examples and looked at: batches, taps, tokens, and a survey of one forward pass."""
