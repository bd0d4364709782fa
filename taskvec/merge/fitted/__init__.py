"""Merges fitted to statistics of the models on data: Fisher, RegMean, RegMean++."""
