"""The text side of a CLIP model: which files it is read from, and what a model's description may ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from taskvec.errors import UserError
from taskvec.models.clip.config import local_folder
from taskvec.models.sources import CONFIG, TOKENIZER_FILES, Source, largest_token

TOKENS = 49408  # of open_clip's own tokenizer

# What a description may hold; open_clip would hand on anything else to whatever it builds.
_DESCRIPTION = {
    "embed_dim",
    "vision_cfg",
    "text_cfg",
    "custom_text",
    "quick_gelu",
    "init_logit_bias",
}
_DESCRIPTION |= {"init_logit_scale", "nonscalar_logit_scale"}
_TOKENIZER_SETTINGS: dict[str, tuple[Any, ...]] = {
    "clean": ("canonicalize", "lower", "whitespace"),
    "strip_sep_token": (True, False),
}


@dataclass(frozen=True)
class TextSide:
    """Where the tokenizer and the tower's description are; None for open_clip's own tokenizer and plain tower."""

    settings: Mapping[str, Any]
    tokenizer: Source | None
    tower: Source | None

    def identity(self) -> dict[str, Any]:
        """Return what stands for the content of both."""
        tokenizer = self.tokenizer.identity(TOKENIZER_FILES) if self.tokenizer else None
        return {
            "tokenizer": tokenizer,
            "tower": self.tower.identity((CONFIG,)) if self.tower else None,
        }

    def check(self) -> None:
        """Check that neither asks for code to be run without consent, and that every token has a row.

        Raises:
            UserError: if one does or one has none, or if one cannot be reached.
        """
        for source in (self.tokenizer, self.tower):
            if source:
                source.check()
        rows = self.settings.get("vocab_size", TOKENS)
        if self.tower:
            rows = (self.tower.json(CONFIG) or {}).get("vocab_size", rows)
        if not isinstance(rows, int):
            raise UserError(
                f"backbone.architecture: malformed model description (vocab_size {rows!r})"
            )
        largest: tuple[int, str] | None = (TOKENS - 1, "<end_of_text>")
        if self.tokenizer:
            largest = largest_token(self.tokenizer)
        if largest and largest[0] >= rows:
            number, token = largest
            raise UserError(
                f"backbone.architecture: the tokenizer has {number + 1} tokens ({token!r} is the last), "
                f"the text embedding {rows} rows"
            )


def text_side(architecture: str, model_cfg: Mapping[str, Any], trusted: bool = False) -> TextSide:
    """Return where the text side of a model is read from.

    Raises:
        ValueError: for a setting that open_clip must not get from a file.
    """
    unknown = sorted(set(model_cfg) - _DESCRIPTION)
    if unknown:
        raise ValueError(
            f"model_cfg.{unknown[0]} is not covered (only {', '.join(sorted(_DESCRIPTION))})"
        )
    settings = model_cfg.get("text_cfg") or {}
    for key, value in (settings.get("tokenizer_kwargs") or {}).items():
        if value not in _TOKENIZER_SETTINGS.get(key, ()):
            known = ", ".join(_TOKENIZER_SETTINGS)
            raise ValueError(
                f"text_cfg.tokenizer_kwargs: {key}: {value!r} is not handed on (only {known})"
            )
    folder, key = local_folder(architecture), "backbone.architecture"
    name = settings.get("hf_tokenizer_name")
    # open_clip looks for a folder's tokenizer in the folder
    place = str(folder) if folder else name
    tokenizer = Source(place, key=key, trusted=trusted) if name else None
    named = settings.get("hf_model_name")
    tower = Source(named, key=key, trusted=trusted) if named else None
    return TextSide(settings, tokenizer, tower)


def check_text(shapes: Mapping[str, Sequence[int]], model_cfg: Mapping[str, Any]) -> None:
    """Compare the text side of a checkpoint's header with open_clip's plain text tower.

    Raises:
        ValueError: naming the tensor that is missing or of another shape.
    """
    text = model_cfg.get("text_cfg") or {}
    if text.get("hf_model_name"):
        return
    vocabulary, width = text.get("vocab_size", TOKENS), text.get("width", 512)
    positions = text.get("context_length", 77) + bool(text.get("embed_cls"))
    expected = {
        "token_embedding.weight": (vocabulary, width),
        "positional_embedding": (positions, width),
    }
    prefix = "text." if "text.token_embedding.weight" in shapes else ""
    for name, shape in expected.items():
        if prefix + name not in shapes:
            raise ValueError(f"the checkpoint lacks the text tower's {name} {shape}")
        if tuple(shapes[prefix + name]) != shape:
            found = f"{prefix}{name} has shape {tuple(shapes[prefix + name])} in the checkpoint"
            raise ValueError(f"{found}, the architecture has {shape}")
    start = f"{prefix}transformer.resblocks."
    blocks = len(
        {name.removeprefix(start).split(".")[0] for name in shapes if name.startswith(start)}
    )
    if blocks != (layers := text.get("layers", 12)):
        raise ValueError(
            f"the text tower has {blocks} layers in the checkpoint, the architecture has {layers}"
        )
