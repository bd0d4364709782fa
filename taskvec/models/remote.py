"""Weights and tokenizers of the hub, as a backbone reads them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from taskvec.data.remote import MEGA, Remote
from taskvec.errors import UserError
from taskvec.models.sources import CONFIG, TOKENIZER, Source, one_line

INDEX = "model.safetensors.index.json"
WEIGHTS = r"model(-\d+-of-\d+)?\.safetensors"
LANGUAGE_MODEL = (CONFIG, "generation_config.json", re.escape(INDEX), WEIGHTS)
CHECKPOINT = r"(model|adapter_model)(-\d+-of-\d+)?\.safetensors"
CHECKPOINT_PICKLE = r"(pytorch_model|adapter_model)\.bin"
TAGGED = r"open_clip_model\.safetensors"
TAGGED_PICKLE = r"open_clip_pytorch_model\.bin"


@dataclass(frozen=True)
class RemoteFiles(Remote):
    """Those files of a repository whose names match some patterns.

    A file that matches ``first`` must be there, or else one that matches ``otherwise``, which is fetched only then.
    ``megabytes`` is what the backbone's preset says.
    """

    what: str
    source: Source
    patterns: Sequence[str]
    first: str
    otherwise: str | None = None
    megabytes: float | None = None

    @property
    def title(self) -> str:
        """What it is and the repository's name."""
        return f"{self.what} {self.source.name}"

    def known(self) -> bool:
        """Return whether the branch's commit is in the hub's cache, and the description with it."""
        return self.source.cached_commit() is not None

    def here(self) -> bool:
        """Return whether a file that matters is in the hub's cache, with every shard that its index names."""
        commit = self.source.cached_commit()
        if commit is None:
            return False
        names = self.source.cached_names(commit)
        index = self.source.json(INDEX) if INDEX in names else None
        if index:
            return set(index["weight_map"].values()) <= set(names)
        decisive = filter(None, (self.first, self.otherwise))
        return any(_matching(pattern, names) for pattern in decisive)

    def size(self) -> float | None:
        """Return the bytes as the preset tells them."""
        return None if self.megabytes is None else self.megabytes * MEGA

    def fetch(self) -> None:
        """Bring the files into the hub's cache at the branch's present commit.

        Raises:
            UserError: if the hub does not give them.
        """
        from huggingface_hub import HfApi, snapshot_download

        name, revision = self.source.name, self.source.revision
        try:
            info = HfApi().model_info(name, revision=revision)
            names = [file.rfilename for file in info.siblings or ()]
            wanted = [file for pattern in self.patterns for file in _matching(pattern, names)]
            if self.otherwise and not _matching(self.first, names):
                wanted += _matching(self.otherwise, names)
            snapshot_download(name, revision=revision, allow_patterns=wanted)
        except Exception as error:  # whatever the library or the network raise
            reason = one_line(error)
            raise UserError(f"{self.source.key}: {name}: cannot be fetched: {reason}") from error


def _matching(pattern: str, names: Sequence[str]) -> list[str]:
    return [name for name in names if re.fullmatch(pattern, name)]


def tokenizer_files(source: Source) -> RemoteFiles:
    """Return what a tokenizer is read from."""
    names = tuple(map(re.escape, TOKENIZER))
    return RemoteFiles("tokenizer", source, (re.escape(CONFIG), *names), "|".join(names))


def language_model_files(source: Source, megabytes: float | None) -> RemoteFiles:
    """Return what a language model is read from, its tokenizer included."""
    patterns = (*LANGUAGE_MODEL, *map(re.escape, TOKENIZER))
    return RemoteFiles("weights", source, patterns, WEIGHTS, megabytes=megabytes)


def tagged_files(source: Source, megabytes: float | None) -> RemoteFiles:
    """Return what open_clip reads of a tag's repository."""
    patterns = (TAGGED, r"open_clip_config\.json")
    return RemoteFiles("weights", source, patterns, TAGGED, TAGGED_PICKLE, megabytes)


def checkpoint_files(source: Source, megabytes: float | None) -> RemoteFiles:
    """Return what a fine-tuned model or an adapter is read from."""
    patterns = (CONFIG, r"adapter_config\.json", re.escape(INDEX), CHECKPOINT)
    return RemoteFiles("checkpoint", source, patterns, CHECKPOINT, CHECKPOINT_PICKLE, megabytes)
