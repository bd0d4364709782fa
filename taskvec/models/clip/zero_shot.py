"""Zero-shot classification with open_clip models: loading them, and the frozen head that the text tower writes.

Radford et al., Learning Transferable Visual Models From Natural Language Supervision, arXiv 2103.00020, section 3.1.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taskvec.models.clip.config import (
    FOLDER_CONFIG,
    LOCAL_DIR,
    check_shapes,
    local_folder,
    open_clip_config,
    vision_config,
)
from taskvec.models.clip.text import TextSide, text_side
from taskvec.models.sources import TOKENIZER_FILES, Source, unasked

FOLDER_WEIGHTS = "open_clip_model.safetensors"


@torch.no_grad()
def zero_shot_head(
    clip: nn.Module,
    tokenizer: Callable[[list[str]], Tensor],
    class_names: Sequence[str],
    templates: Sequence[str],
    batch_size: int = 256,
) -> Tensor:
    """Write the classifier [C, d] (float32, on the model's device) from the names of C classes.

    w_c = exp(s) u(mean_p u(t(template_p(c)))), with u scaling to unit length, t the text tower and s the logit scale. A
    template holds one ``{}`` for the class name; about ``batch_size`` texts are encoded at a time.

    Raises:
        ValueError: for an empty list, and for a template that does not hold one ``{}``.
    """
    if not class_names or not templates:
        raise ValueError("a zero-shot head needs at least one class name and one template")
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(f"template {template!r} must hold one {{}} for the class name")
    scale = clip.logit_scale.float().exp()
    step = max(1, batch_size // len(templates))
    rows = []
    for start in range(0, len(class_names), step):
        names = class_names[start : start + step]
        tokens = tokenizer([template.format(name) for name in names for template in templates])
        texts = F.normalize(clip.encode_text(tokens.to(scale.device)).float(), dim=-1)
        rows.append(F.normalize(texts.unflatten(0, (len(names), -1)).mean(dim=1), dim=-1))
    return scale * torch.cat(rows)


def classify(features: Tensor, head: Tensor) -> Tensor:
    """Return the logits [N, C] = u(features) head^T of features [N, d] under a head [C, d]; u scales to unit length."""
    dtype = torch.promote_types(features.dtype, head.dtype)
    return F.normalize(features.to(dtype), dim=-1) @ head.to(dtype).T


def load_open_clip(
    architecture: str,
    pretrained: str | None = None,
    checkpoint: str | Path | None = None,
    device: str | torch.device = "cpu",
    quick_gelu: bool | None = None,
    trusted: bool = False,
) -> tuple[nn.Module, Callable[[list[str]], Tensor], dict[str, Any]]:
    """Load a CLIP model (float32, evaluation mode), its tokenizer, and its preprocessing (size, mean, std, ...).

    The weights come from a pre-training tag of a named architecture (downloaded once), from a local ``checkpoint`` for
    one (a tag beside it then says only how the weights were trained: activation and preprocessing), or from a folder in
    open_clip's ``local-dir`` format. Files are safetensors, or torch files of nothing but tensors: code in a file never
    runs, but that of a tokenizer if it is ``trusted``. ``quick_gelu`` overrides the architecture's activation in both
    towers.

    Raises:
        ValueError: for a tower that ``vision_config`` refuses, an unknown name or tag, a missing or unreadable file, a
            checkpoint of another architecture, a ``quick_gelu`` that contradicts the tag, settings that open_clip must
            not get from a file, and code that would have to be run without consent.
    """
    folder = local_folder(architecture)
    model_cfg = open_clip_config(architecture)
    config = vision_config(model_cfg)
    side = text_side(architecture, model_cfg, trusted)
    side.check()
    if folder is not None and (pretrained or checkpoint):
        raise ValueError(
            f"{folder} holds its own weights: give neither a tag nor a checkpoint with it"
        )
    if folder is None and not (pretrained or checkpoint):
        raise ValueError(
            f"{architecture} needs weights: a pre-training tag, a checkpoint file, or a folder with both"
        )
    tag: Mapping[str, Any] = {}
    if pretrained:
        tag = _tag_settings(architecture.replace("/", "-"), pretrained)
    trained_with = bool(model_cfg.get("quick_gelu") or tag.get("quick_gelu"))
    if quick_gelu is None:
        quick_gelu = trained_with
    elif tag and quick_gelu != trained_with:
        named = architecture.replace("/", "-")
        raise ValueError(
            f"the weights {pretrained!r} of {named} were trained with quick_gelu={trained_with}"
        )
    weights = Path(checkpoint) if checkpoint else None
    if folder is not None:
        weights = folder / FOLDER_WEIGHTS
    if weights is not None:
        # open_clip itself would quietly interpolate the position embeddings of another image size.
        check_shapes(_header(weights), config)

    with _opened(folder, side) as place, unasked():
        name = architecture.replace("/", "-")
        source = str(weights) if weights else pretrained
        if place:
            name, source = f"{LOCAL_DIR}{place}", None
        return _created(
            name, source, side, device=device, quick_gelu=quick_gelu, force_preprocess_cfg=tag
        )


def _created(
    name: str, source: str | None, side: TextSide, *, quick_gelu: bool, **settings: Any
) -> tuple[nn.Module, Callable[[list[str]], Tensor], dict[str, Any]]:
    """Return what open_clip makes of a name, or of a folder that holds its own weights.

    Raises:
        ValueError: if the tokenizer is larger than the embedding, which files alone do not always say.
    """
    import open_clip

    clip = open_clip.create_model(
        name,
        pretrained=source,
        precision="fp32",
        # open_clip itself only warns where a tag wants QuickGELU, and its force cannot switch QuickGELU off.
        force_quick_gelu=quick_gelu,
        quick_gelu=quick_gelu,
        require_pretrained=True,
        weights_only=True,
        **settings,
    )
    options: dict[str, Any] = {}
    if side.tokenizer:
        options["trust_remote_code"] = side.tokenizer.trusted
        if not side.tokenizer.folder:
            options["revision"] = side.tokenizer.commit
    tokenizer = open_clip.get_tokenizer(name, **options)
    if side.tokenizer and len(tokenizer.tokenizer) > clip.vocab_size:
        raise ValueError(
            f"{len(tokenizer.tokenizer)} tokens for an embedding of {clip.vocab_size} rows"
        )
    return clip.eval(), tokenizer, dict(clip.visual.preprocess_cfg)


@contextmanager
def _opened(folder: Path | None, side: TextSide) -> Iterator[str | None]:
    """Yield a folder that shows open_clip the files that count, and no others; None for a named architecture."""
    if folder is None:
        yield None
        return
    names = (FOLDER_CONFIG, FOLDER_WEIGHTS, *(TOKENIZER_FILES if side.tokenizer else ()))
    source = side.tokenizer or Source(str(folder), key="backbone.architecture")
    with source.opened(names) as place:
        yield place["pretrained_model_name_or_path"]


def _tag_settings(name: str, pretrained: str) -> Mapping[str, Any]:
    """Return what open_clip knows of a pre-training tag.

    Raises:
        ValueError: for an unknown tag, naming the known ones.
    """
    import open_clip

    settings = open_clip.get_pretrained_cfg(name, pretrained)
    if not settings:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise ValueError(f"open_clip has no weights {pretrained!r} for {name}; its tags: {tags}")
    return settings


def _header(path: Path) -> dict[str, Sequence[int]]:
    """Read the names and shapes in a checkpoint without its data; torch files may nest them in ``state_dict``.

    Raises:
        ValueError: for a file that is missing, damaged, or holds more than tensors.
    """
    if not path.is_file():
        raise ValueError(f"checkpoint {path} does not exist")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (not a mapping)
        except SafetensorError as error:
            raise ValueError(f"checkpoint {path} is damaged: {error}") from error
    try:
        stored = torch.load(path, map_location="meta", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"checkpoint {path} is damaged or holds more than tensors; convert it to safetensors"
        ) from error
    state = stored.get("state_dict", stored)
    return {
        name.removeprefix("module."): tensor.shape
        for name, tensor in state.items()
        if isinstance(tensor, Tensor)
    }
