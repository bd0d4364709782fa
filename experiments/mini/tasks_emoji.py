"""Tasks of drawn pictures, split by artist: emoji (eight groups) and objects (the broad control, many names)."""

import json
import re
from functools import cache

import numpy as np
from paths import npm
from pools import Pool, fill
from render import icon

GROUPS = {
    "Smileys & Emotion": "smiley",
    "People & Body": "person",
    "Animals & Nature": "animal",
    "Food & Drink": "food",
    "Travel & Places": "place",
    "Activities": "activity",
    "Objects": "object",
    "Symbols": "symbol",
}
ARTISTS = {
    "train": ("twemoji", "noto"),
    "val": ("emojione",),
    "test": ("fluent-emoji-flat", "fluent-emoji"),
}
PRETRAIN_ARTISTS = ("openmoji", "fxemoji", "streamline-emojis", "noto-v1")
CONTROL_GROUPS = ("animal", "food", "place", "activity", "object")
CONTROL_CLASSES = 250
SKIN = re.compile(r"-skin-tone")
CLOCK = re.compile(r"oclock|thirty")


@cache
def collection(name: str) -> dict:
    """One icon collection with its pictures and metadata."""
    return json.loads((npm("@iconify/json") / "json" / f"{name}.json").read_text())


@cache
def grouping() -> dict[str, str]:
    """The group of every emoji name that the sets with categories agree to hold."""
    groups: dict[str, str] = {}
    for name in ("twemoji", "noto", "fluent-emoji-flat", "openmoji"):
        for category, members in collection(name).get("categories", {}).items():
            for member in members:
                if category in GROUPS and not SKIN.search(member):
                    groups.setdefault(member, GROUPS[category])
    return groups


@cache
def control_names() -> list[str]:
    """Names of the control task: short, of a thing, drawn by every artist."""
    artists = [a for side in ARTISTS.values() for a in side] + ["openmoji"]
    names = [
        n
        for n, g in grouping().items()
        if g in CONTROL_GROUPS and n.count("-") <= 1 and not CLOCK.search(n)
    ]
    for artist in artists:
        icons = collection(artist)["icons"]
        names = [n for n in names if n in icons]
    names = sorted(names)
    return sorted(np.random.default_rng(5).permutation(names)[:CONTROL_CLASSES].tolist())


def _draw(artists: tuple[str, ...], labels: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    images, found = [], []
    for artist in artists:
        source = collection(artist)
        for name in source["icons"]:
            image = icon(source, name) if name in labels else None
            if image is not None:
                images.append(image)
                found.append(labels[name])
    return np.array(images), np.array(found)


def emoji(counts: dict, seed: int) -> Pool:
    """The group an emoji belongs to; names of the control task are left out."""
    classes, held = list(GROUPS.values()), set(control_names())
    labels = {name: classes.index(group) for name, group in grouping().items() if name not in held}
    sides = {}
    for side, artists in ARTISTS.items():
        drawn_by = artists[:1] if side == "test" else artists
        sides[side] = _draw(drawn_by, labels)
    rule = "artist: Twemoji and Noto for training, EmojiOne for validation, Fluent Emoji for test"
    return fill(Pool(classes, rule), sides, counts, seed)


def objects(counts: dict, seed: int) -> Pool:
    """The broad control task: the name of a drawn thing."""
    labels = {name: index for index, name in enumerate(control_names())}
    sides = {side: _draw(artists, labels) for side, artists in ARTISTS.items()}
    sides["pre"] = tuple(part[:0] for part in sides["train"])
    rule = "artist: Twemoji and Noto for training, EmojiOne for validation, Fluent Emoji (flat and shaded) for test"
    return fill(Pool([name.replace("-", " ") for name in labels], rule), sides, counts, seed)
