"""Which parameters of a model get which block of the curvature, and why the others get none."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from taskvec.statistics.passes.survey import Survey
from taskvec.statistics.passes.taps import Place

CLASS_TOKEN = "class_embedding"  # [d], the same for every example
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


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
        self, parameters: Collection[str], layers: Collection[str], vectors: Collection[str]
    ) -> dict[str, str]:
        """Return why each parameter outside the blocks of ``layers`` and ``vectors`` has none."""
        covered = set(_parameters_of(layers)) | set(vectors)
        known = set(_parameters_of(self.layers))
        for name, part in self.affine.items():
            known |= {f"{name}.{key}" for key, _ in part.named_parameters()}
        reasons = dict.fromkeys(parameters, "no block is defined for its kind")
        reasons |= dict.fromkeys(known, "the features do not depend on it")
        reasons |= self.reasons
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
    modules = linear | _affine_modules(model.module, editable)
    refused = _refusals(survey, modules)
    reasons: dict[str, str] = {}
    for name, reason in refused.items():
        reasons |= {f"{name}.{key}": reason for key, _ in modules[name].named_parameters()}
    found = [name for name in linear if name not in refused]
    if not found:
        raise ValueError(f"no linear layer can be tracked ({reasons or 'none is editable'})")
    return Tracked(
        layers=tuple(found),
        sources=survey.sources(Place(name) for name in found),
        biased=frozenset(name for name in found if f"{name}.bias" in editable),
        affine={name: part for name, part in modules.items() if name not in linear and name not in refused},
        class_token=CLASS_TOKEN in editable and editable[CLASS_TOKEN].ndim == 1,
        reasons=reasons,
    )


def _parameters_of(layers: Collection[str]) -> list[str]:
    return [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]


def _linear_modules(survey: Survey) -> dict[str, nn.Module]:
    """Return the linear layers with an editable weight.

    Raises:
        ValueError: naming a layer that is no ``nn.Linear``.
    """
    found: dict[str, nn.Module] = {}
    for layer in survey.model.layers:
        module = survey.model.module.get_submodule(layer.name)
        if not isinstance(module, nn.Linear):
            raise ValueError(f"{layer.name} is a {type(module).__name__}, not a Linear layer")
        if f"{layer.name}.weight" in survey.model.parameters:
            found[layer.name] = module
    return found


def _refusals(survey: Survey, modules: Mapping[str, nn.Module]) -> dict[str, str]:
    """Return why some of the modules have no blocks."""
    owners = _owners(survey.model.module)
    refused: dict[str, str] = {}
    for name, module in modules.items():
        shared = [owner for parameter in module.parameters(recurse=False) for owner in owners[id(parameter)]]
        reason = survey.refusal(name)
        if any(not owner.startswith(f"{name}.") for owner in shared):
            refused[name] = "it is shared by several modules"
        elif reason:
            refused[name] = reason
    return refused


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
        is_leaf = bool(name) and not any(part.children())
        is_other = isinstance(part, (nn.Linear, *_BATCH_NORMS))
        if is_leaf and not is_other and _per_channel(local) and any(f"{name}.{key}" in editable for key in local):
            found[name] = part
    return found


def _per_channel(local: Mapping[str, Tensor]) -> bool:
    """Return whether a module's parameters are one vector [d], or a gain and a shift of equal width."""
    shapes = {tuple(parameter.shape) for parameter in local.values()}
    gains = set(local) - {"bias"}
    return len(shapes) == 1 and len(next(iter(shapes))) == 1 and len(gains) < 2
