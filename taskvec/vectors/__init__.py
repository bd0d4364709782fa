"""Task vectors: named weight deltas, their arithmetic and their files."""

from taskvec.vectors.deferred import Deferred, Sliced, Tensors, converted, save_tensors
from taskvec.vectors.low_rank import LowRank
from taskvec.vectors.task_vector import TaskVector, random_like, weights_hash

__all__ = [
    "Deferred",
    "LowRank",
    "Sliced",
    "TaskVector",
    "Tensors",
    "converted",
    "random_like",
    "save_tensors",
    "weights_hash",
]
