"""YAML files of others, read with bounded resources: no file is so large, so deep or so repetitive that it matters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from taskvec.errors import UserError
from taskvec.graph.encoding import read_bytes

MAX_BYTES, MAX_DEPTH, MAX_ALIASES = 4 << 20, 40, 100


def read_yaml(path: Path) -> Any:
    """Return the value of a YAML file, made of plain types.

    Raises:
        UserError: in one line, if it cannot be read or is no YAML, too large, too deep, or repeats itself by aliases.
    """
    try:
        text = read_bytes(path, MAX_BYTES).decode("utf-8-sig")
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        _bounded(text, loader)
        return yaml.load(text, Loader=loader)  # noqa: S506 (one of the two safe loaders)
    except UserError:
        raise
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not valid YAML: {reason[:200]}") from error


def _bounded(text: str, loader: Any) -> None:
    """Look at a document before anything is built of it.

    Raises:
        ValueError: if it is too deep, or has so many aliases that its values could multiply without end.
    """
    depth = aliases = 0
    for event in yaml.parse(text, Loader=loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(
            event, yaml.CollectionEndEvent
        )
        aliases += isinstance(event, yaml.AliasEvent)
        if depth > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} levels deep")
        if aliases > MAX_ALIASES:
            raise ValueError(f"more than {MAX_ALIASES} aliases")
