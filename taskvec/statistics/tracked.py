"""Which parameters of a model get which block of the curvature, and why the others get none."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from taskvec.models.layers import LinearLayer
from taskvec.statistics.taps import untappable

if TYPE_CHECKING:
    from taskvec.models.base import Model

CLASS_TOKEN = "class_embedding"  # [d], the same for every example
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass(frozen=True)
class Tracked:
    """``layers``: linear layers with a block on [W | b] (``biased``) or W; ``affine``: norms and scales with blocks on
    their vectors; ``reasons``: by parameter name, why it has no block.
    """

    layers: tuple[str, ...]
    biased: frozenset[str]
    affine: dict[str, nn.Module]
    class_token: bool
    reasons: dict[str, str]

    def untracked(
        self, parameters: Collection[str], layers: Collection[str], vectors: Collection[str]
    ) -> dict[str, str]:
        """Return why each parameter outside the blocks of ``layers`` and ``vectors`` has none."""
        covered = {f"{layer}.weight" for layer in layers} | {f"{layer}.bias" for layer in layers} | set(vectors)
        known = {f"{layer}.{kind}" for layer in self.layers for kind in ("weight", "bias")}
        known |= {f"{name}.{key}" for name, part in self.affine.items() for key, _ in part.named_parameters()}
        unreached = dict.fromkeys(known, "the features do not depend on it")
        default = "no block is defined for its kind"
        return {n: (self.reasons | unreached).get(n, default) for n in parameters if n not in covered}


def track(model: Model, layers: Sequence[LinearLayer], inputs: Tensor, head: Tensor | None) -> Tracked:
    """Sort the editable parameters, with one forward pass over a few examples ``inputs``.

    A layer or norm has blocks if its weight is editable and its own, and it is called once per pass with one row of
    tokens per example.

    Raises:
        TypeError: naming a layer that is no ``nn.Linear``.
        ValueError: if no layer is left.
    """
    editable, names = model.parameters, _owners(model.module)
    modules: dict[str, nn.Module] = {}
    for layer in layers:
        module = model.module.get_submodule(layer.name)
        if not isinstance(module, nn.Linear):
            raise TypeError(f"{layer.name} is a {type(module).__name__}, not a Linear layer")
        if f"{layer.name}.weight" in editable:
            modules[layer.name] = module
    linear = set(modules)
    modules |= _affine_modules(model.module, editable)
    refused = untappable(
        model.module, modules, lambda: model.features({}, inputs, head), len(inputs), model.tokens(inputs)
    )
    for name, module in modules.items():
        shared = {other for p in module.parameters(recurse=False) for other in names[id(p)]}
        if any(not other.startswith(f"{name}.") for other in shared):
            refused[name] = "it is shared by several modules"
    reasons = {
        f"{name}.{key}": reason for name, reason in refused.items() for key, _ in modules[name].named_parameters()
    }
    found = tuple(name for name in modules if name in linear and name not in refused)
    if not found:
        raise ValueError(f"no linear layer can be tracked ({reasons or 'none is editable'})")
    return Tracked(
        layers=found,
        biased=frozenset(name for name in found if f"{name}.bias" in editable),
        affine={name: part for name, part in modules.items() if name not in linear and name not in refused},
        class_token=CLASS_TOKEN in editable and editable[CLASS_TOKEN].ndim == 1,
        reasons=reasons,
    )


def _owners(module: nn.Module) -> dict[int, list[str]]:
    """Return the names of each parameter, by its identity: several where modules share it."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return names


def _affine_modules(module: nn.Module, editable: Collection[str]) -> dict[str, nn.Module]:
    """Return the modules y = w * z + b with a gain or shift per channel that can be edited: norms, layer scales."""
    found = {}
    for name, part in module.named_modules():
        local = dict(part.named_parameters(recurse=False))
        shapes = {tuple(parameter.shape) for parameter in local.values()}
        if not name or len(shapes) != 1 or len(next(iter(shapes))) != 1 or len(set(local) - {"bias"}) > 1:
            continue
        if any(part.children()) or isinstance(part, (nn.Linear, *_BATCH_NORMS)):
            continue
        if any(f"{name}.{key}" in editable for key in local):
            found[name] = part
    return found
