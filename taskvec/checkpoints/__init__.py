"""Checkpoints on disk as tensors by name: how they are read, and how they are written, shard by shard."""
