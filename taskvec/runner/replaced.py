"""Settings that an experiment makes for an option which the command line replaces by another."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from omegaconf import DictConfig

from taskvec import registry
from taskvec.errors import UserError

log = logging.getLogger(__name__)

GROUPS = (*registry.GROUPS, "source")


def leave_out(
    node: DictConfig, overrides: Sequence[str], compose: Callable[[Sequence[str]], DictConfig]
) -> None:
    """Remove the keys that belong to a replaced option and that the new one does not have.

    ``node`` is the config of ``overrides``, and ``compose`` makes that of others. A key that neither option has, or
    that the command line sets itself, stays and is refused later.
    """
    typed = [word.partition("=")[0].lstrip("+~") for word in overrides]
    for group in GROUPS:
        # what has no kind is no option: it is refused later
        kindless = group != "transform" and not known(node, group)
        if group not in typed or kindless:
            continue
        named = [key for key in unknown(node, group) if f"{group}.{key}" not in typed]
        if not named:
            continue
        others = [
            word for word, key in zip(overrides, typed, strict=True) if key.split(".")[0] != group
        ]
        try:
            before = compose(others)
        except UserError:
            continue
        for key in set(named) & known(before, group):
            del node[group][key]
            log.info("%s.%s is left out: %s replaces the option it is for", group, key, group)


def unknown(node: DictConfig, group: str) -> list[str]:
    """Return the keys of a group that its option does not have."""
    there = node.get(group)
    if not isinstance(there, DictConfig):
        return []
    allowed = known(node, group)
    return [str(key) for key in there if key not in allowed]


def known(node: DictConfig, group: str) -> set[str]:
    """Return the keys that the option of a group has; for transforms their names, if they were chosen."""
    there = node.get(group)
    if not isinstance(there, DictConfig):
        return set()
    if group == "transform":
        components = there.items()
        return {
            str(name)
            for name, child in components
            if isinstance(child, DictConfig) and "kind" in child
        }
    kind, place = there.get("kind"), "backbone" if group == "source" else group
    if kind not in registry.names(place):
        return set()
    return set(registry.lookup(place, kind).schema.model_fields)
