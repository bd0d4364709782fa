"""Collect the pre-training text of the mini language models, and train their tokenizer.

    python experiments/mini/text_corpus.py              # texts, then tokenizer, then the report
    python experiments/mini/text_corpus.py tokenizer    # one of: texts, tokenizer, report

The texts go to outputs/mini/text_corpus/<source>.txt, one document a line, with counts and checksums in `index.json`,
and are not shipped: some of them are under copyleft licences. `prompts.jsonl` has the labelled in-domain texts that
`text_suite.py` set aside. No document holds half of a text of the suite, and no source adds text of a group (president,
chapter, article, sender, review) that a validation or test split holds.
"""

import argparse
import gzip
import json
import re
from collections.abc import Callable, Iterator

import pyarrow.parquet as pq
from paths import ASSETS, WORK, deb, npm
from sources import sha256
from text_letters import ADDRESSES, ADULT, SIDES, letters
from text_pools import SPLITS, Seen, passages, sentences, shingles, split_groups, squeeze
from text_suite import POOLS, SEED, SUITE, TASKS
from text_tasks import LANGUAGES, articles, rated, synsets, verses

CORPUS = WORK / "text_corpus"
TOKENIZER = ASSETS / "mini_lm_tokenizer"
VOCABULARY = 6144
SPECIAL = {"pad_token": "<|pad|>", "eos_token": "<|end|>", "mask_token": "<|mask|>"}
LONGEST = 120


def groups(task: str, split: str) -> set[str]:
    """The groups that a task gave to one split."""
    return set(json.loads((POOLS / f"{task}.json").read_text())["groups"][split])


def wordnet() -> Iterator[str]:
    """Words and glosses with their examples."""
    for part in ("noun", "verb", "adj", "adv"):
        for _, _, words, gloss in synsets(part):
            yield f"{words}: {gloss}"


def entries(name: str) -> list[str]:
    """The entries of a dictionary in dictd's format, without its own description."""
    path = deb(f"dict-{name}") / "usr" / "share" / "dictd" / f"{name}.dict.dz"
    with gzip.open(path, "rt", encoding="utf8", errors="ignore") as stream:
        text = stream.read()
    found = re.split(r"\n\n(?=\S)", text)
    return [entry for entry in found if not entry.startswith(("00-database", "00database"))]


def dictionary(name: str) -> Callable[[], Iterator[str]]:
    """A source that yields the entries of a dictionary without marks, pronunciations and etymologies."""

    def source() -> Iterator[str]:
        for entry in entries(name):
            text = re.sub(r"\\[^\\\n]{1,80}\\", "", entry)
            text = re.sub(r"\[[^\]]{1,200}\]|\(\d{4}-\d\d-\d\d\)|\(https?:[^)]*\)|[{}]", " ", text)
            yield from pieces(squeeze(text).replace(" ,", ",").replace(" .", "."))

    return source


def pieces(text: str) -> list[str]:
    """A text in pieces of at most about `LONGEST` words, cut between sentences."""
    if len(text.split()) <= LONGEST:
        return [text]
    found: list[str] = []
    for sentence in sentences(text):
        if found and len(found[-1].split()) < LONGEST // 2:
            found[-1] += " " + sentence
        else:
            found.append(sentence)
    return found


def anarchism() -> Iterator[str]:
    """Paragraphs of the FAQ."""
    folder = deb("anarchism") / "usr" / "share" / "doc" / "anarchism" / "markdown"
    for path in sorted(folder.glob("*.md.gz")):
        with gzip.open(path, "rt", encoding="utf8", errors="ignore") as stream:
            text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", stream.read())
        for paragraph in re.split(r"\n\s*\n", text):
            plain = squeeze(re.sub(r"[*_#>\\]+", "", paragraph))
            if len(plain.split()) >= 12:
                yield from pieces(plain)


def fortunes() -> Iterator[str]:
    """Sayings, without pictures made of letters and without what is about sex."""
    for package in ("fortunes", "fortunes-min"):
        for path in sorted((deb(package) / "usr" / "share" / "games" / "fortunes").glob("*.u8")):
            if path.stem not in {"ascii-art", "zippy", "ethnic", "translate-me"}:
                for saying in (
                    path.resolve().read_text(encoding="utf8", errors="ignore").split("\n%\n")
                ):
                    if len(saying.split()) >= 6 and not ADULT.search(saying):
                        yield from pieces(squeeze(saying))


def scripture() -> Iterator[str]:
    """Passages of the chapters that no validation or test split holds."""
    held = groups("scripture", "val") | groups("scripture", "test")
    chapters: dict[str, list[str]] = {}
    for _, chapter, text in verses():
        if chapter not in held:
            chapters.setdefault(chapter, []).append(text)
    for texts in chapters.values():
        yield from passages(texts, 50, 2 * LONGEST)


def speeches() -> Iterator[str]:
    """Passages of the addresses of presidents that no validation or test split holds."""
    held = groups("speeches", "val") | groups("speeches", "test")
    for path in sorted((npm(ADDRESSES) / "data").glob("*.txt")):
        if path.stem.split("_", 1)[1].rsplit("_", 1)[0] not in held:
            yield from passages(
                sentences(squeeze(path.read_text(encoding="utf8"))), 60, 2 * LONGEST
            )


def languages() -> Iterator[str]:
    """Paragraphs of the articles on the training side, in every language of the task."""
    kept = groups("languages", "train")
    for code in LANGUAGES:
        for number, paragraphs in articles(code).items():
            if number in kept:
                yield from (p for p in paragraphs if len(p.split()) >= 4)


def opinions() -> Iterator[str]:
    """Rated sentences of the training side that are not in the suite, without their ratings."""
    kept = groups("movies", "train")
    for position, (_, _, text) in enumerate(rated("movieReviewSnippets")):
        if str(position // 40) in kept:
            yield text
    kept = groups("products", "train")
    yield from (text for key, _, text in rated("amazonReviewSnippets") if key.split("_")[0] in kept)


def messages() -> Iterator[str]:
    """Messages of the training side that are not in the suite, without their labels."""
    yield from (record.text for record in split_groups(letters(), SIDES, SEED)["train"])


SOURCES: dict[str, tuple[Callable[[], Iterator[str]], str]] = {
    "wordnet": (wordnet, "WordNet"),
    "gcide": (dictionary("gcide"), "GPL"),
    "foldoc": (dictionary("foldoc"), "GFDL-1.1"),
    "jargon": (dictionary("jargon"), "public domain"),
    "devil": (dictionary("devil"), "public domain"),
    "anarchism": (anarchism, "GPL-2"),
    "fortunes": (fortunes, "BSD, mixed quotations"),
    "scripture": (scripture, "public domain"),
    "speeches": (speeches, "public domain"),
    "languages": (languages, "MIT"),
    "opinions": (opinions, "MIT package"),
    "messages": (messages, "PDDL, CC0"),
}


def suite_texts() -> Seen:
    """Every text of the suite's tasks and held-out corpora, for finding what must not be trained on."""
    seen = Seen()
    for path in sorted(SUITE.glob("*/*.parquet")):
        for text in pq.read_table(path, columns=["text"])["text"].to_pylist():
            seen.add(text)
    return seen


def holds_suite_text(document: str, seen: Seen) -> bool:
    """Whether a document holds at least half of the word runs of one text of the suite."""
    shared = seen.shared(document)
    own = len(shingles(document))
    return any(
        n >= 0.5 * seen.sizes[i] and (n >= 3 or own <= 2 * seen.sizes[i]) for i, n in shared.items()
    )


def collect() -> None:
    """Write every source, one document a line, without repeats and without texts of the suite."""
    CORPUS.mkdir(parents=True, exist_ok=True)
    seen, index, lines = suite_texts(), {}, set()
    for name, (source, licence) in SOURCES.items():
        path, dropped, documents, words = CORPUS / f"{name}.txt", 0, 0, 0
        with path.open("w", encoding="utf8") as stream:
            for document in source():
                if document in lines or len(document.split()) < 4:
                    continue
                lines.add(document)
                if holds_suite_text(document, seen):
                    dropped += 1
                    continue
                stream.write(document + "\n")
                documents, words = documents + 1, words + len(document.split())
        index[name] = {
            "documents": documents,
            "words": words,
            "dropped": dropped,
            "licence": licence,
        }
        index[name]["sha256"] = sha256(path)
        print(f"{name:10} {documents:8} documents {words:9} words {dropped:6} dropped", flush=True)
    prompts = CORPUS / "prompts.jsonl"
    with prompts.open("w", encoding="utf8") as stream:
        for task in TASKS:
            for entry in json.loads((POOLS / f"{task}.json").read_text())["pre_texts"]:
                stream.write(json.dumps({"task": task, **entry}, ensure_ascii=False) + "\n")
    index["prompts"] = {
        "documents": len(prompts.read_text().splitlines()),
        "sha256": sha256(prompts),
    }
    (CORPUS / "index.json").write_text(json.dumps(index, indent=2) + "\n")


def train_tokenizer() -> None:
    """Train a byte-level BPE on the collected texts and store it in the standard form."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL.values()),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train([str(CORPUS / f"{name}.txt") for name in SOURCES], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=SPECIAL["eos_token"], model_max_length=128, **SPECIAL
    )
    fast.save_pretrained(TOKENIZER)
    path = TOKENIZER / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(config, indent=2) + "\n")


def lengths(tokenizer, texts: list[str]) -> list[int]:
    """Tokens of each text."""
    return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]


def report() -> None:
    """Print tokens per text of every task, and the tokens of every source."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER, model_max_length=10**9)
    print("| task | tokens, mean | 95th percentile | longest |\n|---|---|---|---|")
    for folder in [*TASKS, "corpus/novel", "corpus/glosses"]:
        paths = (
            [SUITE / f"{folder}.parquet"]
            if "/" in folder
            else [SUITE / folder / f"{s}.parquet" for s in SPLITS]
        )
        texts = [text for path in paths for text in pq.read_table(path)["text"].to_pylist()]
        found = sorted(lengths(tokenizer, texts))
        print(
            f"| {folder} | {sum(found) / len(found):.1f} | {found[int(0.95 * len(found))]} | {found[-1]} |"
        )
    index = json.loads((CORPUS / "index.json").read_text())
    total = 0
    for name in SOURCES:
        index[name]["tokens"] = sum(
            lengths(tokenizer, (CORPUS / f"{name}.txt").read_text().splitlines())
        )
        total += index[name]["tokens"]
        print(
            f"{name:10} {index[name]['words']:9} words {index[name]['tokens']:9} tokens", flush=True
        )
    index["tokens"] = total
    (CORPUS / "index.json").write_text(json.dumps(index, indent=2) + "\n")
    print(f"total {total} tokens, vocabulary {len(tokenizer)}")


def main() -> None:
    """Run the steps named on the command line (default: all)."""
    steps = {"texts": collect, "tokenizer": train_tokenizer, "report": report}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("steps", nargs="*", default=list(steps), help="texts, tokenizer, report")
    for step in parser.parse_args().steps:
        steps[step]()


if __name__ == "__main__":
    main()
