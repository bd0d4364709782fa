"""Text tasks before they are written: records, honest splits, near-duplicate removal, balanced choice."""

import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

SPLITS = ("train", "val", "test")
WORDS = 52
CHARACTERS = 300


@dataclass(frozen=True)
class Record:
    """One text, its class name and what it is kept together with when splitting (a document, an author, a chapter)."""

    text: str
    label: str
    group: str


@dataclass
class TextPool:
    """Texts and class names per split, with the rule that split them and the groups on each side."""

    classes: list[str]
    rule: str
    splits: dict[str, list[Record]] = field(default_factory=dict)
    groups: dict[str, list[str]] = field(default_factory=dict)


def squeeze(text: str) -> str:
    """The text on one line, with plain quotes and single spaces."""
    for old, new in {"’": "'", "‘": "'", "“": '"', "”": '"', "\xa0": " ", "\x00": ""}.items():
        text = text.replace(old, new)
    return " ".join(text.split())


def cut(text: str, words: int = WORDS, characters: int = CHARACTERS) -> str:
    """The beginning of a text, ending at a word."""
    short = " ".join(text.split()[:words])
    return short if len(short) <= characters else short[:characters].rsplit(" ", 1)[0]


def sentences(text: str) -> list[str]:
    """A text cut after full stops, question marks and exclamation marks."""
    return re.split(r"(?<=[.!?])[\"')]*\s+(?=[A-Z\"'(])", text)


def passages(parts: Iterable[str], low: int, high: int) -> list[str]:
    """Consecutive sentences joined to passages of at least `low` words, cut at `high`."""
    found, current = [], []
    for part in parts:
        current += part.split()
        if len(current) >= low:
            found.append(" ".join(current[:high]))
            current = []
    return found


def shingles(text: str) -> frozenset:
    """Runs of four words of a text, without case, figures and punctuation."""
    found = re.findall(r"[^\W\d_]+", text.lower())
    if len(found) < 4:
        return frozenset([tuple(found)])
    return frozenset(tuple(found[i : i + 4]) for i in range(len(found) - 3))


def words(text: str) -> frozenset:
    """The words of a text, without case and figures."""
    return frozenset(re.findall(r"[^\W\d_]+", text.lower()))


class Seen:
    """Texts taken so far; tells whether another one nearly repeats any of them."""

    def __init__(self) -> None:
        """Start with no text."""
        self.sizes: list[int] = []
        self.words: list[frozenset] = []
        self.where: dict[tuple, list[int]] = defaultdict(list)

    def add(self, text: str) -> None:
        """Remember one text."""
        own = shingles(text)
        for key in own:
            self.where[key].append(len(self.sizes))
        self.sizes.append(len(own))
        self.words.append(words(text))

    def shared(self, text: str) -> Counter:
        """How many runs a text has in common with each of the texts taken, by their position."""
        return Counter(index for key in shingles(text) for index in self.where.get(key, ()))

    def near(self, text: str) -> bool:
        """Whether a text shares half of the runs of the shorter one, or six of ten words, with one taken before."""
        own, mine = len(shingles(text)), words(text)
        return any(
            n >= 0.5 * min(self.sizes[i], own)
            or len(mine & self.words[i]) > 0.6 * len(mine | self.words[i])
            for i, n in self.shared(text).items()
        )


def split_groups(
    records: list[Record], shares: dict[str, float], seed: int
) -> dict[str, list[Record]]:
    """Give whole groups to the splits, class by class (of a group's most frequent class), up to each one's share."""
    members = defaultdict(list)
    for record in records:
        members[record.group].append(record)
    by_class = defaultdict(list)
    for group, items in members.items():
        by_class[Counter(r.label for r in items).most_common(1)[0][0]].append(group)
    sides: dict[str, list[Record]] = {split: [] for split in SPLITS}
    rng = random.Random(seed)
    for _, names in sorted(by_class.items()):
        rng.shuffle(names)
        names.sort(key=lambda name: len(members[name]), reverse=True)
        total = sum(len(members[name]) for name in names)
        filled = dict.fromkeys(SPLITS, 0)
        for name in names:
            side = max(SPLITS, key=lambda s: shares[s] - filled[s] / total)
            filled[side] += len(members[name])
            sides[side] += members[name]
    return sides


def choose(records: list[Record], count: int, seen: Seen, rng: random.Random) -> list[Record]:
    """At most `count` records, class by class in turn, none a near repeat of one taken before."""
    queues = defaultdict(list)
    for record in rng.sample(records, len(records)):
        queues[record.label].append(record)
    chosen: list[Record] = []
    while len(chosen) < count and any(queues.values()):
        for label in sorted(queues):
            queue = queues[label]
            while queue and len(chosen) < count:
                record = queue.pop()
                if not seen.near(record.text):
                    seen.add(record.text)
                    chosen.append(record)
                    break
    rng.shuffle(chosen)
    return chosen


def fill(
    pool: TextPool, sides: dict[str, list[Record]], counts: dict[str, int], seed: int
) -> TextPool:
    """Choose test, val, train and `pre` (in-domain pre-training texts, from the training side), without repeats."""
    rng, seen = random.Random(seed), Seen()
    for split in ("test", "val", "train"):
        pool.splits[split] = choose(sides[split], counts[split], seen, rng)
        pool.groups[split] = sorted({record.group for record in sides[split]})
    taken = {record.text for record in pool.splits["train"]}
    rest = [record for record in sides["train"] if record.text not in taken]
    pool.splits["pre"] = choose(rest, counts["pre"], seen, rng)
    return pool
