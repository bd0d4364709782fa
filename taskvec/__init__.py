"""Task arithmetic and model merging: composable, exact, resumable experiments.

What a notebook needs is at hand by name and imported when it is first used: :func:`taskvec.api.runs`,
:func:`taskvec.api.load_vector`, :func:`taskvec.merge.in_memory.merge`, :func:`taskvec.api.evaluate`.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

FUNCTIONS = ("evaluate", "load_vector", "runs")


def __getattr__(name: str) -> Any:
    """Import what is asked for; ``merge`` is a package that can be called.

    Raises:
        AttributeError: for a name that the package does not have.
    """
    if name in FUNCTIONS:
        return getattr(importlib.import_module("taskvec.api"), name)
    if name == "merge":
        return importlib.import_module("taskvec.merge")
    raise AttributeError(f"module 'taskvec' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *FUNCTIONS, "merge"])
