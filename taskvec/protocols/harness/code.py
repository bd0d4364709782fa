"""What a task of the harness would run that needs the user's consent, as its files say before anything is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from taskvec.protocols.harness.files import Definition, own_tasks

CODE = re.compile(r"\bcode_eval\b|HF_ALLOW_CODE_EVAL|\bexec\(|\bsubprocess\b")
CODE_EVAL = re.compile(r"\bcode_eval\b|HF_ALLOW_CODE_EVAL")


def running(path: Path, found: Definition) -> Iterator[str]:
    """Yield what a task runs that is no part of the harness, then what of the model's writing the harness executes."""
    for function in found.functions:
        if function.foreign:
            yield f"runs Python of its own (!function {function.named})"
    for name in unknown_metrics(found.settings):
        yield f"scores with {name!r}, which is a script and no metric of the harness"
    if found.settings.get("use_prompt"):
        yield f"renders templates of a prompt library (use_prompt {found.settings['use_prompt']})"
    kwargs = found.settings.get("dataset_kwargs")
    if isinstance(kwargs, Mapping) and kwargs.get("trust_remote_code"):
        yield "loads its data with trust_remote_code"
    executing = [module for module, text in found.modules().items() if CODE.search(text)]
    metrics = str(found.settings.get("metric_list", ""))
    if executing:
        yield f"executes code that the model writes ({executing[0].name})"
    elif found.settings.get("unsafe_code") or CODE_EVAL.search(metrics):
        yield f"executes code that the model writes ({path.name})"


def scores_with_code_eval(found: Definition) -> bool:
    """Return whether a task or a module of it names the metric that wants a second consent in the shell."""
    texts = [str(found.settings.get("metric_list", "")), *found.modules().values()]
    return any(CODE_EVAL.search(text) for text in texts)


def unknown_metrics(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield the metrics that the harness would look up outside: by a path, or on the hub.

    Where a task computes its own, the metrics that it lists are mere names.
    """
    listed = settings.get("metric_list")
    if settings.get("process_results") or not isinstance(listed, list):
        return
    for entry in listed:
        if not isinstance(entry, Mapping):
            continue
        name = entry.get("metric")
        known = not isinstance(name, str) or name in known_metrics()
        if entry.get("hf_evaluate") or not known:
            yield str(name)


@cache
def known_metrics() -> frozenset[str]:
    """Return the names of the harness's metrics, read from its source: importing it takes seconds."""
    source = own_tasks().parent / "api" / "metrics.py"
    names = re.findall(r"metric=\"([^\"]+)\"", source.read_text(encoding="utf-8"))
    return frozenset(names)
