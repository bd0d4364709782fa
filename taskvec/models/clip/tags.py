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
    module = ast.parse(path.read_text(encoding="utf-8"))
    assigned = [line for line in module.body if isinstance(line, ast.Assign)]
    values = {ast.unparse(line.targets[0]): line.value for line in assigned}
    places = values["_PRETRAINED"]
    if not isinstance(places, ast.Dict):
        return {}
    found = {}
    for key, entry in zip(places.keys, places.values, strict=True):
        table = values[entry.id] if isinstance(entry, ast.Name) else entry
        found[ast.literal_eval(key)] = _table(table)
    return found


def _table(call: ast.Call) -> dict[str, str]:
    """Return the hub's place of each tag in ``dict(TAG=_pcfg(hf_hub=PLACE, ...), ...)``."""
    places = {}
    for tag in call.keywords:
        settings = {setting.arg: setting.value for setting in tag.value.keywords}
        if "hf_hub" in settings:
            places[tag.arg] = ast.literal_eval(settings["hf_hub"])
    return places
