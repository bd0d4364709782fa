"""Where a model's or a tokenizer's files are, which of them count, and how third parties get to see them.

What is read is what is hashed. Of a local folder the loaders of transformers and open_clip are shown links to the
counted files and nothing else, so that an adapter, a pickle or a second vocabulary beside them has no effect; a name of
the hub is pinned to the commit that its branch has in the local cache. Python that a folder brings along never runs
unless ``backbone.trust_remote_code`` says so.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from taskvec.data.files import remembered_sha256
from taskvec.data.remote import reachable
from taskvec.data.tasks import ASSETS
from taskvec.errors import UserError

CONFIG = "config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENIZER = (
    "tokenizer.json", TOKENIZER_CONFIG, "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "vocab.txt", "spiece.model", "spm.model", "tokenizer.model", "sentencepiece.bpe.model",
)  # fmt: skip
TOKENIZER_FILES = (CONFIG, *TOKENIZER)  # transformers chooses the tokenizer's class by the config


@dataclass(frozen=True)
class Source:
    """A local folder, ``pkg://NAME`` in the package, or a public name of the hub; ``key`` is the setting that names it.

    ``trusted`` is the consent to run the Python files that it brings along.
    """

    name: str
    revision: str | None = None
    key: str = "backbone.model"
    trusted: bool = False

    @cached_property
    def folder(self) -> Path | None:
        """The local folder; None for a name of the hub.

        Raises:
            UserError: for a path without a folder.
        """
        if self.name.startswith("pkg://"):
            folder = ASSETS / self.name.removeprefix("pkg://")
        else:
            folder = Path(self.name).expanduser()
        if folder.is_dir():
            return folder
        if self.name.startswith(("pkg://", "/", ".", "~")) or self.name.count("/") > 1:
            raise UserError(f"{self.key}: no folder {folder}")
        return None

    @cached_property
    def commit(self) -> str | None:
        """The hub's commit: that of the branch in the local cache, else the hub's own; None where it is out of reach.

        Raises:
            UserError: for a name that the hub cannot have.
        """
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id

        try:
            validate_repo_id(self.name)
        except HFValidationError as error:
            raise UserError(
                f"{self.key}: {self.name!r} is neither a folder nor a name of the hub"
            ) from error
        cached = self.cached_commit()
        if cached or not reachable():
            return cached
        try:
            return HfApi().model_info(self.name, revision=self.revision).sha
        except Exception:  # whatever the network or the hub says
            return None

    @property
    def _cached_repository(self) -> Path:
        """The repository's folder in the hub's cache, whether it is there or not."""
        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name

        folder = repo_folder_name(repo_id=self.name, repo_type="model")
        return Path(constants.HF_HUB_CACHE, folder)

    def cached_commit(self) -> str | None:
        """Return the commit that the revision has in the hub's cache, None if it is not there."""
        revision = self.revision or "main"
        if (self._cached_repository / "snapshots" / revision).is_dir():
            return revision  # a commit already
        branch = self._cached_repository / "refs" / revision
        return branch.read_text(encoding="utf-8").strip() if branch.is_file() else None

    def cached_names(self, commit: str) -> list[str]:
        """Return the names of a commit's files in the hub's cache, without those of its subfolders."""
        folder = self._cached_repository / "snapshots" / commit
        return sorted(path.name for path in folder.glob("*"))

    def check(self) -> None:
        """Check that the place can be reached and that it does not ask for code to be run without consent.

        Raises:
            UserError: with the reason.
        """
        if not self.folder and not self.commit:
            raise UserError(
                f"{self.key}: {self.name} is neither a folder nor in the hub's cache, nor can it be fetched"
            )
        for name in (CONFIG, TOKENIZER_CONFIG):
            if not self.folder and self.file(name) is None:
                self._fetch(name)
            described = self.json(name) or {}
            code = described.get("auto_map")
            if code and not self.trusted:
                raise UserError(
                    f"{self.key}: {name} of {self.name} names Python of its own ({_first(code)}), which is not run; "
                    "backbone.trust_remote_code=true allows it"
                )
            if "--" in str(code):
                raise UserError(
                    f"{self.key}: {name} of {self.name} names Python of another place ({_first(code)})"
                )

    def _fetch(self, name: str) -> None:
        """Bring a small file of the hub into its cache, if there is one.

        Raises:
            UserError: if the hub does not give it.
        """
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        try:
            hf_hub_download(self.name, name, revision=self.commit)
        except EntryNotFoundError:
            return  # the repository has no such file, or the machine is offline and never saw it
        except Exception as error:
            raise UserError(
                f"{self.key}: {self.name}: {name} cannot be fetched: {one_line(error)}"
            ) from error

    def file(self, name: str) -> Path | None:
        """Return a file of the folder or, for a name of the hub, of its cache; None if it is not there.

        Raises:
            UserError: for a name that leads out of the folder.
        """
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise UserError(f"{self.key}: {self.name} names the file {name}, which lies outside it")
        if self.folder:
            found = self.folder / path
            return found if found.is_file() else None
        if not self.commit:
            return None
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(self.name, name, revision=self.commit)
        return Path(cached) if isinstance(cached, str) else None

    def json(self, name: str) -> dict[str, Any] | None:
        """Return a JSON file's object; None if the file is not there.

        Raises:
            UserError: if it holds anything else.
        """
        path = self.file(name)
        if path is None:
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{self.key}: {path} is not JSON: {error}") from error
        if not isinstance(content, dict):
            raise UserError(f"{self.key}: {path} must hold a JSON object")
        return content

    def identity(self, names: Sequence[str]) -> Any:
        """Return what stands for the content: the checksums of those of the named files that are there, or the commit.

        With consent, Python files beside them count too.
        """
        if not self.folder:
            return [self.name, self.commit or self.revision]
        paths = {name: self.file(name) for name in self._shown(names)}
        return {name: remembered_sha256(path) for name, path in paths.items() if path}

    @contextmanager
    def opened(self, names: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yield what ``from_pretrained`` takes to find the named files and no others; nobody is asked anything.

        Raises:
            UserError: if the place asks for code to be run without consent.
        """
        self.check()
        with unasked():
            if not self.folder:
                reachable()  # else the library asks for each file again and again
                yield {
                    "pretrained_model_name_or_path": self.name,
                    "revision": self.commit,
                    "trust_remote_code": self.trusted,
                }
                return
            with TemporaryDirectory(prefix="taskvec-") as place:
                for name in self._shown(names):
                    if path := self.file(name):
                        link = Path(place, name)
                        link.parent.mkdir(parents=True, exist_ok=True)
                        link.symlink_to(path.resolve())
                yield {
                    "pretrained_model_name_or_path": place,
                    "local_files_only": True,
                    "trust_remote_code": self.trusted,
                }

    def _shown(self, names: Sequence[str]) -> list[str]:
        modules = (
            sorted(path.name for path in self.folder.glob("*.py"))
            if self.trusted and self.folder
            else []
        )
        return [*names, *modules]


@contextmanager
def unasked() -> Iterator[None]:
    """Keep libraries from asking on standard input whether code may run: the question fails instead of waiting."""
    answers, sys.stdin = sys.stdin, io.StringIO("")
    try:
        yield
    finally:
        sys.stdin = answers


def largest_token(source: Source) -> tuple[int, str] | None:
    """Return the largest token id that a tokenizer's files speak of, and its token; None if no file can be read here.

    Raises:
        UserError: for a malformed file.
    """
    known = tokens_of(source)
    return max(((number, token) for token, number in known.items()), default=None)


def tokens_of(source: Source) -> dict[str, int]:
    """Return the id of every token that a tokenizer's files speak of; none if no file can be read here.

    Raises:
        UserError: for a malformed file.
    """
    try:
        return {token: int(number) for token, number in _read_tokens(source).items()}
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{source.key}: {source.name}: malformed tokenizer ({error})") from error


def _read_tokens(source: Source) -> dict[str, int]:
    """Return the vocabulary and the added tokens of a tokenizer's files."""
    whole = source.json("tokenizer.json")
    if whole:
        vocabulary = whole["model"]["vocab"]
        # Unigram: pairs of token and score in the order of their ids
        if isinstance(vocabulary, list):
            vocabulary = {token: number for number, (token, _) in enumerate(vocabulary)}
        known = dict(vocabulary)
        known |= {token["content"]: token["id"] for token in whole.get("added_tokens", [])}
    elif lines := source.file("vocab.txt"):
        words = lines.read_text(encoding="utf-8").splitlines()
        known = {word: number for number, word in enumerate(words)}
    else:
        known = dict(source.json("vocab.json") or {})
    known |= source.json("added_tokens.json") or {}
    added = (source.json(TOKENIZER_CONFIG) or {}).get("added_tokens_decoder") or {}
    return known | {token["content"]: int(number) for number, token in added.items()}


def one_line(error: Exception) -> str:
    """Return the first line of an error of a library, which may write several."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _first(code: Any) -> str:
    """Return the first class that an ``auto_map`` names."""
    while isinstance(code, dict | list) and code:
        code = next(iter(code.values())) if isinstance(code, dict) else code[0]
    return str(code)
