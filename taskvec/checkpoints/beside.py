"""The files beside a checkpoint's weights: config, tokenizer, card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from taskvec.checkpoints.reading import Checkpoint
from taskvec.checkpoints.writing import Content
from taskvec.models.clip.config import FOLDER_CONFIG
from taskvec.models.sources import CONFIG, TOKENIZER, Source

# What belongs to a tokenizer beside the files that make it
TEMPLATES = ("chat_template.jinja", "chat_template.json", "generation_config.json")
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
MORE_TEMPLATES = "additional_chat_templates"
CARD = "README.md"


def tokenizer_files(source: Source) -> dict[str, Content]:
    """Return the files of a tokenizer as they are: vocabulary, special tokens, chat templates, processors."""
    found: dict[str, Content] = {}
    for name in (*TOKENIZER, *TEMPLATES[:2], *PROCESSORS):
        path = source.file(name)
        if path is not None:
            found[name] = path
    if source.folder is not None:
        for path in sorted((source.folder / MORE_TEMPLATES).glob("*.jinja")):
            found[f"{MORE_TEMPLATES}/{path.name}"] = path
    return found


def config_files(base: Checkpoint, changes: Mapping[str, Any]) -> dict[str, Content]:
    """Return a model's description with some values changed; byte for byte where none is."""
    if base.source is None:
        return {}
    name = FOLDER_CONFIG if base.kind == "open_clip" else CONFIG
    found: dict[str, Content] = {}
    generation = base.source.file("generation_config.json")
    if generation is not None:
        found["generation_config.json"] = generation
    path = base.source.file(name)
    described = dict(base.config or {}) | dict(changes)
    if path is not None and base.source.json(name) == described:
        return found | {name: path}
    text = json.dumps(described, indent=2, ensure_ascii=False)
    return found | {name: text.encode() + b"\n"}


def card(title: str, front: Mapping[str, Any], body: str) -> bytes:
    """Return a model card: front matter that hubs read, a title and Markdown."""
    matter = yaml.safe_dump(dict(front), sort_keys=False, allow_unicode=True)
    return f"---\n{matter}---\n\n# {title}\n\n{body.rstrip()}\n".encode()


def beside_of(base: Checkpoint, changes: Mapping[str, Any] | None = None) -> dict[str, Content]:
    """Return config and tokenizer of a model, as they stand beside its weights.

    An open_clip folder's tokenizer is the one in it, if any.
    """
    found = config_files(base, changes or {})
    return found if base.source is None else found | tokenizer_files(base.source)


def shown(name: str) -> str:
    """Return a model's name as others may see it: of a place on this machine the last part."""
    path = Path(name).expanduser()
    return path.name if path.exists() else name
