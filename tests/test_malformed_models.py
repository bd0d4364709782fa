"""Random edits of a model folder's JSON: each is used, or refused in one line before it takes time or memory."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from test_foreign_code import DESCRIPTION, PROMPT, clip, copy_tokenizer  # noqa: F401 (a fixture)
from test_language_models import FAMILIES
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
)

from taskvec.errors import UserError
from taskvec.models.base import Backbone
from taskvec.models.causal import Causal
from taskvec.models.clip.backbone import Clip
from taskvec.models.encoder import Encoder
from taskvec.models.text_to_text import TextToText

CLASSES = {
    Causal: AutoModelForCausalLM,
    Encoder: AutoModelForMaskedLM,
    TextToText: AutoModelForSeq2SeqLM,
}
VALUES = [
    None,
    True,
    0,
    -1,
    3,
    10**6,
    10**9,
    10**30,
    1e308,
    float("nan"),
    float("inf"),
    0.5,
    "",
    "x" * 5000,
    [],
    {},
]
VALUES += ["../../etc/passwd", "\x00\x1b[31m", [1, 2], [[]], {"a": 1}, ["x"]]
KEYS = [
    "auto_map",
    "is_causal",
    "quantization_config",
    "layer_types",
    "tokenizer_class",
    "model_type",
    "pad_token",
]
BYTES = [b"[" * 100_000, b'{"a":' * 100_000, "{}".encode("utf-16"), b"", b"\xff"]


def places(value: Any) -> list[tuple[Any, Any]]:
    """Return every container of a JSON value with each of its keys, of large ones the first."""
    if not isinstance(value, dict | list):
        return []
    keys = list(value)[:40] if isinstance(value, dict) else list(range(min(len(value), 4)))
    found = [(value, key) for key in keys]
    for key in keys:
        found += places(value[key])
    return found


def edited(text: str, draw: random.Random) -> bytes:
    if draw.random() < 0.1:
        return draw.choice(BYTES)
    content = json.loads(text)
    container, key = draw.choice(places(content))
    action = draw.random()
    if action < 0.7:
        container[key] = draw.choice(VALUES)
    elif action < 0.85:
        del container[key]
    else:
        content[draw.choice(KEYS)] = draw.choice(VALUES)
    return json.dumps(content).encode()


def use(backbone: Backbone) -> None:
    for step in (
        backbone.check,
        backbone.check_inputs,
        backbone.identity,
        backbone.preprocessing,
        backbone.spaces,
    ):
        step()
    backbone.heads({"toy": PROMPT})
    if backbone.modality == "texts":
        backbone.tokenize([("", "a good film", "")])
    backbone.load("cpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    for name in ("llama", "gpt2", "bert", "deberta_v2", "t5", "gemma3"):
        kind, model_type, _, sizes = FAMILIES[name]
        config = AutoConfig.for_model(model_type, **sizes | {"vocab_size": 6144})
        CLASSES[kind].from_config(config).save_pretrained(root / name)
        copy_tokenizer(root / name)
    return {path.name: path for path in root.iterdir()}


@pytest.mark.parametrize("seed", range(20))
def test_edited_descriptions(folders, clip, tmp_path, seed):  # noqa: F811
    draw = random.Random(seed)
    for attempt in range(6):
        name = draw.choice([*folders, "clip"])
        source = clip if name == "clip" else folders[name]
        place = tmp_path / f"{attempt}"
        shutil.copytree(source, place)
        main = DESCRIPTION if name == "clip" else "config.json"
        file = draw.choice([main, main, "tokenizer.json", "tokenizer_config.json"])
        (place / file).write_bytes(edited((place / file).read_text(), draw))
        backbone = (
            Clip(architecture=str(place))
            if name == "clip"
            else FAMILIES[name][0](model=str(place), max_length=32)
        )
        try:
            use(backbone)
        except UserError as error:
            assert "\n" not in str(error)
