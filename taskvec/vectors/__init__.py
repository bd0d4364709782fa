"""Task vectors: named weight deltas, their arithmetic and their files."""

from taskvec.vectors.task_vector import TaskVector, random_like, weights_hash

__all__ = ["TaskVector", "random_like", "weights_hash"]
