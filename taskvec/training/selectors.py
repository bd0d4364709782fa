"""Which parameters fine-tuning moves: the study's subsets, by the roles of linear layers, or a pattern of names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from taskvec.models.layers import LinearLayer

ATTENTION, MLP = ("attn.", "cross."), ("mlp.",)
SUBSETS = {  # roles, kinds of parameters (spec 5.2)
    "attn_w": (ATTENTION, ("weight",)),
    "attn_wb": (ATTENTION, ("weight", "bias")),
    "attn_b": (ATTENTION, ("bias",)),
    "linear_w": ((*ATTENTION, *MLP), ("weight",)),
    "mlp": (MLP, ("weight", "bias")),
    "mlp_w": (MLP, ("weight",)),
    "lora": ((*ATTENTION, *MLP), ("weight",)),
}


def check_selector(select: str) -> str:
    """Return the selector if it is a subset's name or a regular expression with more than letters.

    Raises:
        ValueError: for an unknown name and for a pattern that is no regular expression.
    """
    if select == "full" or select in SUBSETS:
        return select
    if re.fullmatch(r"\w+", select):
        raise ValueError(
            f"unknown selector; known: full, {', '.join(SUBSETS)}, or a regular expression of names"
        )
    try:
        re.compile(select)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from error
    return select


def selected(select: str, names: Iterable[str], layers: Sequence[LinearLayer]) -> list[str]:
    """Return the names that a selector trains, in their order; the others stay at theta_0 and are not stored.

    ``attn_w`` is attention-only fine-tuning, the weights of q, k, v and out in every block (arXiv 2407.07089); a
    regular expression selects the names in which it is found.

    Raises:
        ValueError: if it selects nothing.
    """
    names = list(names)
    if select in SUBSETS:
        roles, kinds = SUBSETS[select]
        wanted = {
            f"{layer.name}.{kind}"
            for layer in layers
            if layer.role.startswith(roles)
            for kind in kinds
        }
    else:
        wanted = {name for name in names if select == "full" or re.search(select, name)}
    chosen = [name for name in names if name in wanted]
    if not chosen:
        raise ValueError(
            f"finetune.select: {select!r} selects none of the backbone's {len(names)} parameters"
        )
    return chosen
