"""From the command line of ``taskvec merge`` to a request: the same merges and options as in runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from taskvec.checkpoints.beside import shown
from taskvec.config import plain
from taskvec.errors import UserError
from taskvec.on_disk.request import Everywhere, Keys, Request, tensor_wise
from taskvec.runner import compose, explain

PRIMARY = "on_disk"


def request_of(
    overrides: Sequence[str], mergekit: str | None, settings: Mapping[str, Any]
) -> Request:
    """Return what a command asks for; of a mergekit recipe, what the recipe asks for.

    Raises:
        UserError: for an unknown key or option, a wrong type or value, a missing one, or a merge that needs more than
            files hold.
    """
    compose.register_all()
    if mergekit is not None:
        return _of_recipe(overrides, Path(mergekit).expanduser(), settings)
    keys = keys_of(overrides)
    merge = tensor_wise(keys.merge)
    described = plain(keys, _settings)
    return Request(
        models=keys.models,
        out=Path(keys.out).expanduser(),
        rules=Everywhere(merge, _words(merge)),
        base=keys.base,
        alpha=keys.alpha,
        dtype=keys.dtype,
        recipe=_recipe(described, keys),
        **settings,
    )


def keys_of(overrides: Sequence[str]) -> Keys:
    """Return the typed keys of a command.

    Raises:
        UserError: for an unknown key or option, a wrong type or value, or a missing one.
    """
    composed = compose.compose(overrides, PRIMARY)
    data = compose.plain_of(composed)
    try:
        data["merge"] = compose.component("merge", "", data["merge"])
        return explain.checked(Keys, data, "")
    except explain.InvalidError as error:
        raise UserError(error.explain(overrides, compose.sources(composed, PRIMARY))) from error


def _settings(record: Any) -> dict[str, Any]:
    return record.model_dump(mode="json")


def _words(merge: Any) -> str:
    """Return a merge with the options that are not its defaults."""
    changed = []
    for name, field in type(merge).model_fields.items():
        value = getattr(merge, name)
        if name in ("kind", "seed") or value == field.default:
            continue
        changed.append(f"{name}={value}")
    if merge.draws:
        changed.append(f"seed={merge.seed}")
    return " ".join([merge.kind, *changed])


def _recipe(described: Mapping[str, Any], keys: Keys) -> str:
    """Return what was asked for as YAML that others may see."""
    told = {key: value for key, value in described.items() if key != "out"}
    told["models"] = [shown(name) for name in keys.models]
    told["base"] = shown(keys.base) if keys.base else None
    return yaml.safe_dump(told, sort_keys=False, allow_unicode=True)


def _of_recipe(overrides: Sequence[str], path: Path, settings: Mapping[str, Any]) -> Request:
    """Return what a mergekit recipe asks for; the command adds ``out`` and may add ``seed``.

    Raises:
        UserError: for a recipe that cannot be read, what it says that we lack, and other keys of the command.
    """
    from taskvec.on_disk.mergekit.recipe import request_of_recipe

    given = dict(word.split("=", 1) for word in overrides if "=" in word)
    unknown = next((key for key in given if key not in ("out", "seed")), None)
    if unknown or "out" not in given:
        what = f"{unknown} is the recipe's to say" if unknown else "out=FOLDER is missing"
        raise UserError(f"--mergekit: {what}; beside a recipe there are out= and seed=")
    seed = given.get("seed", "0")
    if not seed.isdecimal():
        raise UserError(f"seed: must be a whole number, got {seed!r}")
    return request_of_recipe(path, Path(given["out"]).expanduser(), int(seed), settings)
