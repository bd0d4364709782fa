"""Why an artefact was computed: the keys in which it differs from the nearest one that the store already had."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from taskvec.graph.artefact import read_json
from taskvec.graph.store import RECORD, Store

Recipe = Mapping[str, Any]


def reasons(
    recipe: Recipe, label: str, store: Store, planned: Mapping[str, Recipe] | None = None
) -> list[str]:
    """Return ``key: old -> new`` for every difference to the nearest stored artefact of the same kind and label.

    Inputs that differ are followed to the settings in which they differ; those that are not stored yet are looked up in
    ``planned`` (recipes by fingerprint). An empty list means there is none to compare.
    """
    recipes = dict(planned or {})

    def recipe_of(fingerprint: str | None) -> Recipe | None:
        if fingerprint not in recipes:
            recipes[fingerprint] = stored_record(store, fingerprint)
        return recipes[fingerprint]

    best: tuple[int, float, list[str]] | None = None
    for folder, record in store.records():
        if not record or record["kind"] != recipe["kind"] or record["label"] != label:
            continue
        if all(record[key] == recipe[key] for key in ("version", "spec", "inputs")):
            continue
        found = list(differences(record, recipe, recipe_of))
        age = -(folder / RECORD).stat().st_mtime
        if best is None or (len(found), age) < best[:2]:
            best = (len(found), age, found)
    return best[2] if best else []


def differences(
    old: Recipe, new: Recipe, recipe_of: Callable[..., Recipe | None], prefix: str = ""
) -> Iterator[str]:
    """Yield the differences of two recipes, following inputs as far as their recipes are known."""
    before, after = flat(old), flat(new)
    for key in sorted(before.keys() | after.keys()):
        was, now = before.get(key), after.get(key)
        if was == now:
            continue
        if key.startswith("inputs."):
            before_it, after_it = recipe_of(was), recipe_of(now)
            if before_it and after_it:
                yield from differences(
                    before_it, after_it, recipe_of, f"{prefix}{key.removeprefix('inputs.')}: "
                )
                continue
        yield f"{prefix}{key.removeprefix('spec.')}: {_short(was)} -> {_short(now)}"


def stored_record(store: Store, fingerprint: str | None) -> Mapping[str, Any] | None:
    """Return the record of a stored artefact, or None."""
    found: list[Path] = list(store.root.glob(f"*/{fingerprint}/{RECORD}")) if fingerprint else []
    return read_json(found[0]) if found else None


def flat(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return version, settings and inputs of a recipe as one level of dotted keys."""
    out: dict[str, Any] = {}

    def visit(node: Any, key: str) -> None:
        if isinstance(node, Mapping) and node:
            for name, child in node.items():
                visit(child, f"{key}.{name}")
        else:
            out[key] = node

    for key in ("version", "spec", "inputs"):
        visit(recipe[key], key)
    return out


def _short(value: Any) -> str:
    text = "(absent)" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
