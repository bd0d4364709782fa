"""Models whose vocabularies differ: rows of embeddings paired by token, never by number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from taskvec.checkpoints.beside import tokenizer_files
from taskvec.checkpoints.reading import Checkpoint
from taskvec.checkpoints.writing import Content
from taskvec.errors import UserError
from taskvec.models.sources import TOKENIZER_FILES, Source, tokens_of, unasked

OPTIONS = "--tokenizer base, --tokenizer union or --tokenizer FOLDER"


@dataclass(frozen=True)
class Vocabulary:
    """A model's tokens with their ids, and the rows of its embedding; no tokens where there is no tokenizer."""

    label: str
    tokens: Mapping[str, int]
    rows: int
    source: Source | None = None


@dataclass(frozen=True)
class Pairing:
    """Of the written embedding: its rows, and for each model the row of its own that belongs to each (-1: none).

    The first entry of ``of`` is the base's. ``files`` are the tokenizer's.
    """

    rows: int
    of: Sequence[Tensor]
    files: Mapping[str, Content]
    notes: Sequence[str] = field(default=())


def vocabulary_of(checkpoint: Checkpoint, rows: int) -> Vocabulary:
    """Return a checkpoint's vocabulary."""
    source = checkpoint.source
    tokens = tokens_of(source) if source is not None else {}
    return Vocabulary(checkpoint.name, tokens, rows, source)


def pairing_of(
    base: Vocabulary, models: Sequence[Vocabulary], choice: str | None
) -> Pairing | None:
    """Return how rows are paired; None if all vocabularies and embeddings are the same and nothing is chosen.

    A model without a tokenizer has the base's.

    Raises:
        UserError: if they differ and nothing is chosen, or what is chosen cannot be read.
    """
    models = [_with_tokens(model, base) for model in models]
    everyone = [base, *models]
    if choice is None:
        _refuse_different(base, models)
        if all(model.rows == base.rows for model in models):
            return None
    if not base.tokens:
        raise UserError(f"--tokenizer: {base.label} has no tokenizer to pair rows by")
    tokens, files = _chosen(base, models, choice)
    rows = max([number + 1 for number in tokens.values()], default=0)
    if choice in (None, "base", "union"):
        rows = max(rows, base.rows)
    of = [_rows(tokens, rows, vocabulary) for vocabulary in everyone]
    _keep_padding(of[0], tokens, base)
    notes = [_note(vocabulary, tokens) for vocabulary in everyone]
    return Pairing(rows, of, files, [note for note in notes if note])


def _with_tokens(model: Vocabulary, base: Vocabulary) -> Vocabulary:
    if model.tokens:
        return model
    return Vocabulary(model.label, base.tokens, model.rows, model.source)


def _refuse_different(base: Vocabulary, models: Sequence[Vocabulary]) -> None:
    """Check that all vocabularies are the same.

    Raises:
        UserError: naming a token that differs, and the options.
    """
    for model in models:
        if model.tokens == base.tokens:
            if not base.tokens and model.rows != base.rows:
                raise UserError(
                    f"{model.label} has {model.rows} rows of embeddings, {base.label} has {base.rows}, and there is no "
                    "tokenizer to pair them by; put tokenizer.json beside the weights"
                )
            continue
        differing = sorted(model.tokens.items() ^ base.tokens.items(), key=lambda item: item[1])
        token = differing[0][0]
        raise UserError(
            f"the vocabularies of {base.label} and {model.label} differ (token {token!r}: "
            f"{_id(base, token)} and {_id(model, token)}); choose {OPTIONS}"
        )


def _id(vocabulary: Vocabulary, token: str) -> str:
    return f"id {vocabulary.tokens[token]}" if token in vocabulary.tokens else "none"


def _chosen(
    base: Vocabulary, models: Sequence[Vocabulary], choice: str | None
) -> tuple[Mapping[str, int], Mapping[str, Content]]:
    """Return the tokens of the written tokenizer, and its files.

    Raises:
        UserError: if it cannot be read.
    """
    if choice == "union":
        more = [model for model in models if not model.tokens.keys() <= base.tokens.keys()]
        if more:
            return _union(base, more)
    if choice in (None, "base", "union"):
        files = tokenizer_files(base.source) if base.source else {}
        return base.tokens, files
    source = Source(choice, key="--tokenizer")
    tokens = tokens_of(source)
    if not tokens:
        raise UserError(f"--tokenizer: {choice} holds no tokenizer")
    return tokens, tokenizer_files(source)


def _union(
    base: Vocabulary, models: Sequence[Vocabulary]
) -> tuple[Mapping[str, int], Mapping[str, Content]]:
    """Return the base's tokenizer with the tokens that only others have, added in the order of their ids.

    Raises:
        UserError: if a tokenizer cannot be loaded.
    """
    tokenizer = _loaded(base)
    for model in models:
        own = _loaded(model)
        added = own.added_tokens_decoder
        known = tokenizer.get_vocab()
        lacking = [token for token in model.tokens if token not in known]
        lacking.sort(key=model.tokens.__getitem__)
        described = [added.get(model.tokens[token], token) for token in lacking]
        tokenizer.add_tokens(described)
    with TemporaryDirectory(prefix="taskvec-") as place:
        tokenizer.save_pretrained(place)
        written = sorted(path for path in Path(place).rglob("*") if path.is_file())
        files: dict[str, Content] = {
            path.relative_to(place).as_posix(): path.read_bytes() for path in written
        }
    return tokenizer.get_vocab(), files


def _loaded(vocabulary: Vocabulary) -> Any:
    """Return transformers' tokenizer.

    Raises:
        UserError: if it cannot be loaded.
    """
    from transformers import AutoTokenizer

    source = vocabulary.source
    if source is None:
        raise UserError(f"--tokenizer: {vocabulary.label} has no tokenizer")
    extra = ("chat_template.jinja", "generation_config.json")
    try:
        with unasked(), source.opened((*TOKENIZER_FILES, *extra)) as place:
            return AutoTokenizer.from_pretrained(**place)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"--tokenizer: {vocabulary.label}: {error}") from error


def _rows(tokens: Mapping[str, int], rows: int, vocabulary: Vocabulary) -> Tensor:
    """Return a vocabulary's own row for each written one; a token beyond its embedding has none."""
    found = torch.full((rows,), -1, dtype=torch.int64)
    for token, number in tokens.items():
        own = vocabulary.tokens.get(token, -1)
        if own < vocabulary.rows:
            found[number] = own
    return found


def _keep_padding(of_base: Tensor, tokens: Mapping[str, int], base: Vocabulary) -> None:
    """Let rows that no token has be what they are in the base."""
    taken = set(tokens.values()) | set(base.tokens.values())
    for number in range(min(len(of_base), base.rows)):
        if number not in taken:
            of_base[number] = number


def _note(vocabulary: Vocabulary, tokens: Mapping[str, int]) -> str:
    """Return what is special about a vocabulary."""
    beyond = [number for number in vocabulary.tokens.values() if number >= vocabulary.rows]
    lacking = len(tokens.keys() - vocabulary.tokens.keys())
    left = len(vocabulary.tokens.keys() - tokens.keys())
    said = []
    if lacking:
        said.append(f"lacks {lacking} of the written tokens")
    if left:
        said.append(f"has {left} tokens that are not written")
    if beyond:
        said.append(f"has {len(beyond)} tokens beyond its {vocabulary.rows} rows")
    padding = vocabulary.rows - len(vocabulary.tokens) + len(beyond)
    if padding > 0:
        said.append(f"has {padding} rows without a token")
    return f"{vocabulary.label} {', '.join(said)}" if said else ""
