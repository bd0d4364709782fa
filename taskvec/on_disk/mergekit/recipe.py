"""A mergekit recipe as a request: which models, and which merge of ours for which tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from taskvec.checkpoints.beside import shown
from taskvec.checkpoints.reading import open_checkpoint
from taskvec.errors import UserError
from taskvec.merge.base import TensorWise
from taskvec.on_disk.mergekit.methods import METHODS, Method, Values
from taskvec.on_disk.mergekit.parameters import layer_of, stands_before, value_of
from taskvec.on_disk.mergekit.schema import Recipe, Settings, Slice, recipe_of
from taskvec.on_disk.request import Request, check_merge
from taskvec.on_disk.stacked import Part, Place, Stack, depth_of

LIMIT = 2**20  # bytes of a recipe


class RecipeRules:
    """The merge of each tensor by a recipe's parameters; merges with equal parameters are one object."""

    def __init__(
        self,
        recipe: Recipe,
        method: Method,
        models: Sequence[int],
        depths: Sequence[int],
        seed: int,
    ):
        self.recipe, self.method, self.models, self.seed = recipe, method, models, seed
        self.slices = recipe.slices or [Slice(sources=recipe.models or [])]
        self.depths = depths
        self.on_base = bool(method.on_base) and recipe.base_model is not None
        self.described = f"mergekit's {recipe.merge_method}"
        self._made: dict[str, TensorWise] = {}
        self._checked = self._merge("model.layers.0.self_attn.q_proj.weight")

    @property
    def merges(self) -> Sequence[TensorWise]:
        """The merges that were asked for so far."""
        return list(dict.fromkeys([self._checked, *self._made.values()]))

    def check(self, count: int) -> None:
        """Check the parameters for a number of models.

        Raises:
            UserError: if a merge takes another number.
        """
        check_merge(self._checked, count)

    def merge_of(self, name: str) -> TensorWise:
        """Return the merge of a tensor."""
        if name not in self._made:
            made = self._merge(name)
            known = {merge: merge for merge in self._made.values()}
            self._made[name] = known.get(made, made)
        return self._made[name]

    def _merge(self, name: str) -> TensorWise:
        place, depth = self._place(name)
        values: Values = {"seed": self.seed}
        for key, default in self.method.shared.items():
            values[key] = self._value(key, name, place, None, depth, default)
        for key, default in self.method.of_models.items():
            values[key] = [
                self._value(key, name, place, model, depth, default) for model in self.models
            ]
        return self.method.make(values, self.on_base)

    def _place(self, name: str) -> tuple[Slice, float]:
        """Return a tensor's slice and its depth within it, from 0 to 1."""
        layer = layer_of(name)
        if layer is None:
            before = stands_before(name)
            return self.slices[0 if before else -1], 0.0 if before else 1.0
        for found, length in zip(self.slices, self.depths, strict=True):
            if layer < length:
                return found, layer / (length - 1) if length > 1 else 1.0
            layer -= length
        return self.slices[-1], 1.0

    def _value(
        self, key: str, name: str, place: Slice, model: int | None, depth: float, default: Any
    ) -> Any:
        """Return a parameter: the model's own, else the slice's, else the recipe's, else the default.

        Raises:
            UserError: for one that must be given and is not.
        """
        levels: list[Settings] = [place.parameters, self.recipe.parameters]
        if model is not None:
            levels.insert(0, place.sources[model].parameters)
        for settings in levels:
            found = value_of(settings[key], name, depth) if key in settings else None
            if found is not None:
                return found
        if default is None:
            raise UserError(f"mergekit recipe: {key} is missing for {name}")
        return None if default == "none" else default


def request_of_recipe(path: Path, out: Path, seed: int, settings: Mapping[str, Any]) -> Request:
    """Return what a recipe asks for; random masks follow from ``seed``.

    Raises:
        UserError: for a file that is no recipe, and what it says that is not covered.
    """
    recipe = read_recipe(path)
    if recipe.merge_method not in METHODS:
        raise UserError(
            f"{path}: merge_method {recipe.merge_method} is not covered (covered: {', '.join(METHODS)})"
        )
    method = METHODS[recipe.merge_method]
    _check_parameters(recipe, method)
    slices = recipe.slices or [Slice(sources=recipe.models or [])]
    models = _merged(recipe, method, slices)
    rules = RecipeRules(recipe, method, models, _depths(recipe, slices), seed)
    alpha = recipe.parameters.get("lambda", 1.0)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        raise UserError(f"{path}: lambda is covered as one number, got {alpha!r}")
    settings = dict(settings)
    tokenizer = recipe.tokenizer.source if recipe.tokenizer else recipe.tokenizer_source
    settings["tokenizer"] = settings.get("tokenizer") or tokenizer
    base = _base(recipe, slices) if rules.on_base else None
    return Request(
        models=tuple(_place(recipe, slices, number) for number in models),
        out=out,
        rules=rules,
        base=base,
        zero=not rules.on_base,
        alpha=float(alpha),
        dtype=recipe.out_dtype or recipe.dtype,
        recipe=told(recipe),
        notes=_notes(recipe),
        **settings,
    )


def told(recipe: Recipe) -> str:
    """Return a recipe as a card may tell it: of places on this machine the last part."""
    data = recipe.model_dump(mode="json", exclude_defaults=True)
    sources = list(data.get("models") or [])
    for found in data.get("slices") or []:
        sources += found["sources"]
    for source in sources:
        source["model"] = shown(source["model"])
    if recipe.base_model is not None:
        data["base_model"] = shown(recipe.base_model)
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def read_recipe(path: Path) -> Recipe:
    """Return the recipe in a file.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        if path.stat().st_size > LIMIT:
            raise UserError(f"--mergekit: {path} is larger than a recipe")
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--mergekit: {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"--mergekit: {path}: {' '.join(str(error).split())}") from error
    return recipe_of(data, str(path))


def _check_parameters(recipe: Recipe, method: Method) -> None:
    """Check that every parameter is one of the method's.

    Raises:
        UserError: naming one that is not.
    """
    levels = [recipe.parameters]
    for found in recipe.slices or []:
        levels.append(found.parameters)
        levels += [source.parameters for source in found.sources]
    levels += [source.parameters for source in recipe.models or []]
    known = {*method.shared, *method.of_models, "int8_mask"}
    for settings in levels:
        unknown = next((key for key in settings if key not in known), None)
        if unknown:
            raise UserError(
                f"mergekit recipe: parameter {unknown} of {recipe.merge_method} is not covered"
            )


def _merged(recipe: Recipe, method: Method, slices: Sequence[Slice]) -> list[int]:
    """Return the numbers of the sources that are merged, in order.

    Raises:
        UserError: if slices have different numbers of sources, or a base is missing.
    """
    counts = {len(found.sources) for found in slices}
    if len(counts) > 1:
        raise UserError("mergekit recipe: slices with different numbers of sources are not covered")
    if recipe.base_model is None and (method.on_base is True or method.base_first):
        raise UserError(f"mergekit recipe: {recipe.merge_method} needs base_model")
    numbers = list(range(counts.pop()))
    first = slices[0].sources
    if method.base_first:
        return sorted(numbers, key=lambda number: first[number].model != recipe.base_model)
    if method.on_base:
        return [number for number in numbers if first[number].model != recipe.base_model]
    return numbers


def _place(recipe: Recipe, slices: Sequence[Slice], number: int) -> Place:
    """Return where one of the merged models is.

    Raises:
        UserError: for a layer range that is missing or empty.
    """
    sources = [found.sources[number] for found in slices]
    if recipe.slices is None:
        return sources[0].model
    parts = []
    for source in sources:
        first, last = source.layer_range or (0, 0)
        if not 0 <= first < last:
            raise UserError(f"mergekit recipe: {source.model}: layer_range must be [first, last]")
        parts.append(Part(source.model, first, last))
    return Stack(tuple(parts))


def _base(recipe: Recipe, slices: Sequence[Slice]) -> Place:
    """Return where theta_0 is.

    Raises:
        UserError: if slices lack it.
    """
    if recipe.slices is None:
        return str(recipe.base_model)
    names = [source.model for source in slices[0].sources]
    if recipe.base_model not in names:
        raise UserError("mergekit recipe: base_model must be among the sources of every slice")
    return _place(recipe, slices, names.index(recipe.base_model))


def _depths(recipe: Recipe, slices: Sequence[Slice]) -> list[int]:
    """Return the number of layers of each slice.

    Raises:
        UserError: if the sources of a slice differ in it.
    """
    if recipe.slices is None:
        config = open_checkpoint(slices[0].sources[0].model, "models").config
        return [depth_of(dict(config or {})) or 1]
    found = []
    for number, part in enumerate(slices):
        ranges = [source.layer_range or (0, 0) for source in part.sources]
        lengths = {last - first for first, last in ranges}
        if len(lengths) > 1:
            raise UserError(
                f"mergekit recipe: slices.{number}: all layer ranges must be of one length"
            )
        found.append(lengths.pop())
    return found


def _notes(recipe: Recipe) -> list[str]:
    if recipe.dtype in ("float16", "bfloat16"):
        return [f"computed in float32 and rounded once to {recipe.out_dtype or recipe.dtype}"]
    return []
