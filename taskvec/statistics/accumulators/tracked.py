"""Which parameters of a model get which block of the curvature, and why the others get none."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from taskvec.statistics.passes.survey import Survey
from taskvec.statistics.passes.taps import Place

CLASS_TOKEN = "class_embedding"  # [d], the same for every example
_OTHERS = (
    nn.Linear,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
)


@dataclass(frozen=True)
class Tracked:
    """``layers``: linear layers with a block on [W | b] (``biased``) or W; ``sources``: by layer, the first one that is
    given the same input; ``affine``: norms and scales with blocks on their vectors; ``reasons``: by parameter name, why
    it has no block.
    """

    layers: tuple[str, ...]
    sources: dict[str, str]
    biased: frozenset[str]
    affine: dict[str, nn.Module]
    class_token: bool
    reasons: dict[str, str]

    def untracked(
        self,
        parameters: Collection[str],
        layers: Collection[str],
        vectors: Collection[str],
    ) -> dict[str, str]:
        """Return why each parameter outside the blocks of ``layers`` and ``vectors`` has none."""
        known = _of_layers(self.layers)
        for name, module in self.affine.items():
            known += _of_module(name, module)
        reasons = dict.fromkeys(parameters, "no block is defined for its kind")
        reasons |= dict.fromkeys(known, "the features do not depend on it")
        reasons |= self.reasons
        covered = {*_of_layers(layers), *vectors}
        return {name: reasons[name] for name in parameters if name not in covered}


def track(survey: Survey) -> Tracked:
    """Sort the editable parameters.

    A layer or norm has blocks if its weight is editable and its own, and it is called once per pass with one row of
    tokens per example.

    Raises:
        ValueError: if no layer is left, or one is no ``nn.Linear``.
    """
    model = survey.model
    editable: Mapping[str, Tensor] = model.parameters
    linear = _linear_modules(survey)
    affine = _affine_modules(model.module, editable)
    refused = _refusals(survey, linear | affine)
    reasons = {}
    for name, reason in refused.items():
        module = model.module.get_submodule(name)
        reasons |= dict.fromkeys(_of_module(name, module), reason)
    layers = [name for name in linear if name not in refused]
    if not layers:
        raise ValueError(f"no linear layer can be tracked ({reasons or 'none is editable'})")
    has_token = CLASS_TOKEN in editable and editable[CLASS_TOKEN].ndim == 1
    return Tracked(
        layers=tuple(layers),
        sources=survey.sources(Place(name) for name in layers),
        biased=frozenset(name for name in layers if f"{name}.bias" in editable),
        affine={name: module for name, module in affine.items() if name not in refused},
        class_token=has_token,
        reasons=reasons,
    )


def _of_layers(layers: Collection[str]) -> list[str]:
    return [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]


def _of_module(name: str, module: nn.Module) -> list[str]:
    return [f"{name}.{key}" for key, _ in module.named_parameters()]


def _linear_modules(survey: Survey) -> dict[str, nn.Module]:
    """Return the linear layers with an editable weight.

    Raises:
        ValueError: naming a layer that is no ``nn.Linear``.
    """
    model = survey.model
    found = {}
    for layer in model.layers:
        module = model.module.get_submodule(layer.name)
        if not isinstance(module, nn.Linear):
            kind = type(module).__name__
            raise ValueError(f"{layer.name} is a {kind}, not a Linear layer")
        if f"{layer.name}.weight" in model.parameters:
            found[layer.name] = module
    return found


def _refusals(survey: Survey, modules: Mapping[str, nn.Module]) -> dict[str, str]:
    """Return why some of the modules have no blocks."""
    owners = _owners(survey.model.module)
    refused = {}
    for name, module in modules.items():
        names: set[str] = set()
        for parameter in module.parameters(recurse=False):
            names |= owners[id(parameter)]
        reason = survey.refusal(name)
        if any(not owner.startswith(f"{name}.") for owner in names):
            refused[name] = "it is shared by several modules"
        elif reason:
            refused[name] = reason
    return refused


def _owners(module: nn.Module) -> dict[int, set[str]]:
    """Return the names of each parameter, by its identity: several where modules share it."""
    names = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        known = names.setdefault(id(parameter), set())
        known.add(name)
    return names


def _affine_modules(module: nn.Module, editable: Collection[str]) -> dict[str, nn.Module]:
    """Return the modules y = w * z + b with a gain or shift per channel that can be edited: norms, layer scales."""
    found = {}
    for name, part in module.named_modules():
        is_leaf = bool(name) and not any(part.children())
        if not is_leaf or isinstance(part, _OTHERS) or not _per_channel(part):
            continue
        if any(parameter in editable for parameter in _of_module(name, part)):
            found[name] = part
    return found


def _per_channel(module: nn.Module) -> bool:
    """Return whether a module's parameters are one vector [d], or a gain and a shift of equal width."""
    local = dict(module.named_parameters(recurse=False))
    shapes = {tuple(parameter.shape) for parameter in local.values()}
    gains = local.keys() - {"bias"}
    if len(shapes) != 1 or len(gains) > 1:
        return False
    (shape,) = shapes
    return len(shape) == 1
