"""A source model with added blocks, and what a task vector becomes on it (theseus spec 1.6)."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from taskvec.transform.alignment.extension import IN_STACK, Extension, Lineage
from taskvec.transform.alignment.ridge import Affine, absorbed, correct


@dataclass(frozen=True)
class Deepening:
    """How a task vector of the original model is written on the extended one: extended, then corrected."""

    rule: Extension
    corrections: dict[str, Affine] = field(default_factory=dict)

    def __call__(self, deltas: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the deltas of the extended model."""
        extended = self.rule(deltas)
        for component, correction in self.corrections.items():
            for name in (f"{component}.weight", f"{component}.bias"):
                if name in extended:
                    extended[name] = absorbed(correction, extended[name], shift=False)
        return extended


def deepen(source: Any, target: Any, grown: Mapping[str, Lineage], *, average: bool) -> Any:
    """Return a model like ``source`` with the stacks ``grown`` and the target's layers and spaces.

    Both are of one family and as deep now, so that parameters, layers and spaces have the same names. Its attribute
    ``deepening`` carries task vectors over.
    """
    module = copy.deepcopy(source.module)
    for stack, blocks in grown.items():
        _grow(module, stack, blocks)
    deeper = copy.copy(source)
    deeper.module = module.eval()
    names = [name for name, _ in module.named_parameters()]
    rule = Extension(grown, names, average=average)
    deeper.deepening = Deepening(rule)
    deeper.parameters = rule(source.parameters)
    set_weights(deeper, rule(dict(source.module.named_parameters())))
    for known in ("layers", "spaces", "observed"):
        setattr(deeper, known, getattr(target, known))
    return deeper


def set_weights(model: Any, weights: Mapping[str, Tensor]) -> None:
    """Copy weights into a model's module, and its editable ones into theta_0."""
    for name, parameter in model.module.named_parameters():
        if name in weights:
            parameter.data.copy_(weights[name])
        if name in model.parameters:
            model.parameters[name] = parameter.detach()


def _grow(module: nn.Module, stack: str, blocks: Lineage) -> None:
    """Replace a list of blocks by its extension; an added block is built like the one after its origin.

    The first block may hold what the later ones lack (relative position biases), and an added one is a later one.
    """
    parent, _, attribute = stack.rpartition(".")
    holder = module.get_submodule(parent)
    old = getattr(holder, attribute)
    new = nn.ModuleList()
    for position, block in enumerate(blocks):
        model_of = min(block.origin + 1, len(old) - 1) if block.added else block.origin
        built = copy.deepcopy(old[model_of])
        for part in built.modules():
            if hasattr(part, "layer_idx"):  # transformers' attention keeps its place
                part.layer_idx = position
        new.append(built)
    setattr(holder, attribute, new)
    config = getattr(module, "config", None)
    # Transformers' networks run as many blocks as the config says
    if hasattr(config, "num_hidden_layers"):
        config.num_hidden_layers = len(new)


def components(deeper: Any) -> dict[str, str]:
    """Return, for each norm and linear layer of an added block, the one it descends from."""
    grown = deeper.deepening.rule.grown
    found = {}
    for name in deeper.parameters:
        match = IN_STACK.fullmatch(name)
        if not match or match["stack"] not in grown or not name.endswith(".weight"):
            continue
        block = grown[match["stack"]][int(match["index"])]
        if block.added:
            component = name.removesuffix(".weight")
            rest = match["rest"].removesuffix(".weight")
            found[component] = f"{match['stack']}.{block.origin}.{rest}"
    return found


def corrected(deeper: Any, source: Any, batches: Sequence[Tensor], pull: float) -> Any:
    """Correct the added blocks of an extended model on calibration examples, batches of decoded inputs; in place.

    Components go in the order in which a forward pass calls them, each measured behind the corrected ones before it.
    """
    origins = components(deeper)
    wanted = outputs(source, origins.values(), batches)
    first_batch = outputs(deeper, origins, batches[:1])
    pairs = [(component, origins[component]) for component in first_batch]
    weights = dict(deeper.parameters)

    def now(current: Mapping[str, Tensor], component: str) -> Tensor:
        return outputs(deeper, [component], batches, current)[component]

    corrections = correct(weights, pairs, now, wanted.__getitem__, pull)
    set_weights(deeper, weights)
    deeper.deepening.corrections.update(corrections)
    return deeper


@torch.no_grad()
def outputs(
    model: Any,
    modules: Iterable[str],
    batches: Sequence[Tensor],
    weights: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Return the output rows [n, d] of modules at all real tokens of some batches, in the order of the calls."""
    rows: dict[str, list[Tensor]] = {}
    modules = set(modules)
    for inputs in batches:
        real = model.tokens(inputs)
        handles = []
        for name in modules:
            keep = partial(_keep, rows, name, real)
            handle = model.module.get_submodule(name).register_forward_hook(keep)
            handles.append(handle)
        try:
            model.features(weights or {}, inputs)
        finally:
            for handle in handles:
                handle.remove()
    return {name: torch.cat(seen) for name, seen in rows.items()}


def _keep(
    rows: dict[str, list[Tensor]],
    name: str,
    real: Tensor | None,
    module: nn.Module,
    inputs: tuple,
    output: Tensor,
) -> None:
    padded = real is not None and output.shape[:2] == real.shape
    tokens = output[real] if padded else output.flatten(0, -2)
    rows.setdefault(name, []).append(tokens)
