"""A task's pool: its class names and its images per split, before they are written as Parquet.

`pre` holds the few images that may be used as in-domain pre-training pairs; it shares no image with the other splits.
"""

from dataclasses import dataclass, field

import numpy as np

SPLITS = ("train", "val", "test")
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@dataclass
class Pool:
    """Images (N x 32 x 32 x 3, uint8) and labels per split, with the class names and the rule that split them."""

    classes: list[str]
    rule: str
    splits: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    def put(self, split: str, images: np.ndarray, labels: np.ndarray) -> None:
        """Store one split."""
        self.splits[split] = (np.asarray(images, np.uint8), np.asarray(labels, np.int64))

    def drop_repeats(self) -> None:
        """Remove from each split the images that a later one of pre, train, val, test holds too.

        Fonts share glyphs and neighbouring patches can be equal, so a split by source does not rule them out.
        """
        later: set[bytes] = set()
        for split in ("test", "val", "train", "pre"):
            images, labels = self.splits[split]
            own = [image.tobytes() for image in images]
            keep = np.array([key not in later for key in own])
            self.put(split, images[keep], labels[keep])
            later.update(own)


def balanced(labels: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """At most `count` indices, as evenly over the classes as the labels allow, in random order."""
    queues = [list(rng.permutation(np.flatnonzero(labels == c))) for c in np.unique(labels)]
    chosen: list[int] = []
    while len(chosen) < count and any(queues):
        for queue in queues:
            if queue and len(chosen) < count:
                chosen.append(queue.pop())
    return rng.permutation(np.array(chosen, dtype=np.int64))


def fill(
    pool: Pool, sides: dict[str, tuple[np.ndarray, np.ndarray]], counts: dict[str, int], seed: int
) -> Pool:
    """Take balanced samples per split; without a `pre` side of its own, `pre` is cut off the training side."""
    rng = np.random.default_rng(seed)
    for split in SPLITS:
        images, labels = sides[split]
        if split == "train" and "pre" not in sides:
            order = balanced(labels, counts["pre"] + counts["train"], rng)
            first = balanced(labels[order], counts["pre"], rng)
            pool.put("pre", images[order[first]], labels[order[first]])
            order = np.delete(order, first)
        else:
            order = balanced(labels, counts[split], rng)
        pool.put(split, images[order], labels[order])
    if "pre" in sides:
        order = balanced(sides["pre"][1], counts["pre"], rng)
        pool.put("pre", sides["pre"][0][order], sides["pre"][1][order])
    return pool
