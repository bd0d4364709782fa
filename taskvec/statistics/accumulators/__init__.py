"""The running sums of each collected statistic."""
