"""Merges of checkpoints on disk, read, merged and written piece by piece."""
