"""Merges that decide which entries of the summed vector matter to a task: EMR, TALL masks, Consensus TA."""
