"""Merges whose coefficients are learned on data."""
