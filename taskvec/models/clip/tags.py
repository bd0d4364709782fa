"""Where open_clip gets the weights of a pre-training tag from, read from its source without importing it."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

from taskvec.models.clip.config import package_folder


def tag_repository(architecture: str, tag: str) -> str | None:
    """Return the hub's repository that holds a tag's weights; None for an unknown tag, and for one from elsewhere."""
    name = architecture.replace("/", "-")
    tags = _tables(package_folder() / "pretrained.py")
    known = tags.get(name) or tags.get(name.removesuffix("-quickgelu")) or {}
    place = known.get(tag.lower().replace("-", "_"))
    return "/".join(place.split("/")[:2]) if place else None


@cache
def _tables(path: Path) -> dict[str, dict[str, str]]:
    """Return the hub's place of every tag by architecture.

    The source holds tables ``NAME = dict(TAG=_pcfg(hf_hub=PLACE, ...), ...)`` and one ``_PRETRAINED`` that maps each
    architecture to such a table or to its name.
    """
    named: dict[str, dict[str, str]] = {}
    found: dict[str, dict[str, str]] = {}
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        if not isinstance(statement, ast.Assign) or not isinstance(statement.targets[0], ast.Name):
            continue
        name, value = statement.targets[0].id, statement.value
        if isinstance(value, ast.Call):
            named[name] = _table(value)
        elif name == "_PRETRAINED" and isinstance(value, ast.Dict):
            for key, entry in zip(value.keys, value.values, strict=True):
                if isinstance(key, ast.Constant):
                    found[key.value] = named.get(entry.id, {}) if isinstance(entry, ast.Name) else _table(entry)
    return found


def _table(call: ast.expr) -> dict[str, str]:
    """Return the hub's place of each tag in ``dict(TAG=_pcfg(hf_hub=PLACE, ...), ...)``."""
    places = {}
    for tag in getattr(call, "keywords", []):
        for setting in getattr(tag.value, "keywords", []):
            if setting.arg == "hf_hub" and isinstance(setting.value, ast.Constant):
                places[tag.arg] = setting.value.value
    return places
