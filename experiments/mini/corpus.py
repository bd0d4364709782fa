"""Build the image-text pairs for pre-training: named icons, emoji, clip art, glyphs, and a few images per task.

    python experiments/mini/corpus.py             # every part that is missing
    python experiments/mini/corpus.py --force icons_line

Each part is one `.npz` with `images` (N x 32 x 32 x 3, uint8), `captions` and `mono` (may be recoloured). What the
suite tests on is left out: the artists of the emoji tasks, the validation and test font families, every capital letter,
digit and script of the tasks. The few task images come from the `pre` part of each task's pool.
"""

import argparse
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import yaml
from names import COLOUR, LINE, MARKS, SOLID, STYLE
from paths import CONF_TASK, CORPUS, POOLS, deb
from PIL import Image
from render import SIZE, font_glyphs, icon, to_rgb
from tasks_emoji import PRETRAIN_ARTISTS, SKIN, collection
from tasks_glyph import SCRIPTS, latin_fonts

Pair = tuple[np.ndarray, str]

PICTURE = ["a picture of a {}", "a drawing of a {}", "{}"]
ICON = ["an icon of a {}", "a symbol of {}", "{}"]
EMOJI = ["an emoji of a {}", "an emoji of {}", "a drawing of a {}"]
SKIP_NAMES = re.compile(
    "DIGIT|CAPITAL|NUMBER|NUMERAL|HIRAGANA|KATAKANA|IDEOGRAPH|VARIATION|CJK|HANGUL|YI SYLLABLE|SQUARED? LATIN"
)


def clean(name: str) -> str:
    """An icon's file name as words, its style suffixes removed; empty where nothing is left."""
    words = name.split("-")
    while words and words[-1] in STYLE:
        words.pop()
    return " ".join(words[:6])


def phrase(templates: list[str], text: str, rng: np.random.Generator) -> str:
    """The text in one of the templates."""
    return templates[rng.integers(len(templates))].format(text)


def icons(names: list[str], templates: list[str], limit: int, seed: int) -> Iterator[Pair]:
    """Named icons of several collections, at most `limit` of each."""
    rng = np.random.default_rng(seed)
    for name in names:
        source = collection(name)
        for entry in rng.permutation(sorted(source["icons"]))[:limit]:
            text = clean(entry)
            image = icon(source, entry) if text and not SKIN.search(entry) else None
            if image is not None:
                yield image, phrase(templates, text, rng)


def clipart() -> Iterator[Pair]:
    """Open clip art with its titles."""
    rng = np.random.default_rng(3)
    warnings.filterwarnings("ignore", module="PIL")
    for path in sorted(deb("openclipart-png").glob("usr/share/openclipart/png/**/*.png")):
        try:
            image = Image.open(path).convert("RGBA")
        except (OSError, ValueError, Image.DecompressionBombError):
            continue
        image.thumbnail((SIZE, SIZE), Image.Resampling.BILINEAR)
        canvas = Image.new("RGBA", (SIZE, SIZE), "white")
        canvas.alpha_composite(image, ((SIZE - image.width) // 2, (SIZE - image.height) // 2))
        words = re.sub(r"[_\-\d]+", " ", path.stem).split()[:6]
        yield (
            np.array(canvas.convert("RGB")),
            phrase(PICTURE, " ".join([path.parts[-2].replace("_", " "), *words]), rng),
        )


def lowercase() -> Iterator[Pair]:
    """Lower-case letters and marks of the display fonts outside the validation and test families."""
    chars = "abcdefghijklmnopqrstuvwxyz" + "".join(MARKS)
    parts = latin_fonts()
    for path in parts["pre"] + parts["train"]:
        for image, char in font_glyphs(path, chars):
            yield (
                to_rgb(image),
                f"a printed {MARKS[char]}" if char in MARKS else f"the lowercase letter {char}",
            )


def unicode_glyphs() -> Iterator[Pair]:
    """Symbols and the letters of writing systems that no task asks for, with their Unicode names."""
    rng = np.random.default_rng(4)
    held = {code for first, last in SCRIPTS.values() for code in range(first, last + 1)}
    held |= set(range(0x0300)) | set(range(0xFB00, 0xFF00))
    blocked = tuple(s.upper() for s in SCRIPTS)
    names = {}
    for code in range(0x20000):
        name = unicodedata.name(chr(code), "")
        if (
            name
            and code not in held
            and not SKIP_NAMES.search(name)
            and not name.startswith(blocked)
        ):
            names[chr(code)] = " ".join(name.lower().replace("-", " ").split()[:8])
    fonts = sorted(deb("fonts-dejavu-core").glob("**/DejaVuS*[fs].ttf"))
    fonts += sorted(deb("fonts-noto-core").glob("**/NotoSans*-Regular.ttf"))
    for path in fonts:
        chars = [c for c in names if "Noto" in path.name or unicodedata.category(c)[0] == "S"]
        found = font_glyphs(path, chars)
        for index in rng.permutation(len(found))[: 300 if "Noto" in path.name else 3000]:
            image, char = found[index]
            yield to_rgb(image), names[char]


def domain(task: str) -> Iterator[Pair]:
    """The `pre` images of one task in its zero-shot templates, in the pool's random but balanced order."""
    config = yaml.safe_load((CONF_TASK / f"{task}.yaml").read_text())
    with np.load(POOLS / f"{task}.npz") as pool:
        images, labels, classes = (
            pool["images"],
            pool["labels"],
            config.get("classes") or pool["classes"].tolist(),
        )
    rng = np.random.default_rng(6)
    for image, label in zip(images, labels, strict=True):
        yield image, phrase(config["templates"], classes[label], rng)


DOMAINS = (
    "mnist",
    "fashion",
    "letters",
    "digits",
    "scripts",
    "emoji",
    "climate",
    "brain",
    "kana",
    "optdigits",
)
PARTS: dict[str, tuple[Callable[[], Iterator[Pair]], bool]] = {  # part: (maker, may be recoloured)
    "lowercase": (lowercase, True),
    "unicode": (unicode_glyphs, True),
    "emoji": (lambda: icons(list(PRETRAIN_ARTISTS), EMOJI, 9999, 1), False),
    "icons_colour": (lambda: icons(COLOUR, PICTURE, 1500, 2), False),
    "icons_solid": (lambda: icons(SOLID, ICON, 2500, 3), True),
    "icons_line": (lambda: icons(LINE, ICON, 1800, 4), True),
    "clipart": (clipart, False),
    **{f"task_{task}": (lambda task=task: domain(task), False) for task in DOMAINS},
}


def build(part: str) -> None:
    """Build one part and write it under its final name when complete."""
    maker, mono = PARTS[part]
    images, captions = zip(*maker(), strict=True)
    temporary = CORPUS / f".{part}.npz"
    np.savez(temporary, images=np.stack(images), captions=np.array(captions), mono=np.array(mono))
    temporary.replace(CORPUS / f"{part}.npz")
    print(
        f"{part:16} {len(images):6} images {len(set(captions)):6} captions, e.g. {captions[len(captions) // 2]!r}",
        flush=True,
    )


def main() -> None:
    """Build the missing parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=list(PARTS), help="parts to build")
    parser.add_argument("--force", action="store_true", help="rebuild parts that are there")
    args = parser.parse_args()
    CORPUS.mkdir(parents=True, exist_ok=True)
    for part in args.parts:
        if args.force or not (CORPUS / f"{part}.npz").exists():
            build(part)


if __name__ == "__main__":
    main()
