"""What may run when the harness loads and asks tasks: its own code, and foreign code only where the user consents.

A task's YAML can reach code in four ways: a ``!function`` that names a Python module, a metric that is a script on
this machine or on the hub, a prompt library, and a Jinja template. Templates always render in a sandbox. The others
are refused where they would run, whatever was found in the files beforehand; the modules of the installed harness
itself are part of an installed program and run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from taskvec.errors import UserError
from taskvec.protocols.harness.files import own_tasks

KEY = "protocol.allow_code=true"


@contextmanager
def guarded(*, allow_code: bool) -> Iterator[None]:
    """Guard the harness for the time of a block: sandboxed templates, and without consent no code but its own.

    Raises:
        UserError: from within the block, where a task would run foreign code.
    """
    from jinja2.exceptions import SecurityError
    from lm_eval import utils
    from lm_eval.api import task
    from lm_eval.tasks import _yaml_loader

    with ExitStack() as stack:
        stack.enter_context(replaced(utils, "env", sandbox(utils.env)))
        if not allow_code:
            load, metric = _yaml_loader._import_func_in_yml, task.get_metric
            stack.enter_context(replaced(_yaml_loader, "_import_func_in_yml", own_functions(load)))
            stack.enter_context(replaced(task, "get_metric", known_metrics(metric)))
            stack.enter_context(replaced(task, "get_prompt", no_prompts))
        try:
            yield
        except SecurityError as error:
            raise UserError(
                f"protocol.tasks: a template reaches for what no template may: {error}"
            ) from error


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Give an attribute another value for the time of a block."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def sandbox(env: Any) -> Any:
    """Return a sandboxed environment with the settings and filters of a Jinja environment."""
    from jinja2.sandbox import SandboxedEnvironment

    safe = SandboxedEnvironment(
        loader=env.loader, undefined=env.undefined, keep_trailing_newline=env.keep_trailing_newline
    )
    safe.filters |= env.filters
    return safe


def own_functions(load: Callable[[str, Path], Any]) -> Callable[[str, Path], Any]:
    """Return a loader of ``!function module.name`` that serves the YAML files of the harness alone."""

    def loaded(named: str, folder: Path) -> Any:
        if not Path(folder).resolve().is_relative_to(own_tasks()):
            raise UserError(
                f"protocol.tasks: !function {named} in {folder} runs code; to allow it set {KEY}"
            )
        return load(named, folder)

    return loaded


def known_metrics(get: Callable[..., Any]) -> Callable[..., Any]:
    """Return a finder of metrics that knows those of the harness alone."""

    def found(name: str, hf_evaluate_metric: bool = False) -> Any:
        from lm_eval.api.registry import metric_registry

        if hf_evaluate_metric or name not in metric_registry:
            raise UserError(
                f"protocol.tasks: metric {name!r} is a script that runs; to allow it set {KEY}"
            )
        return get(name)

    return found


def no_prompts(name: str, *_: Any) -> Any:
    """Refuse a prompt library, whose templates render outside of the sandbox.

    Raises:
        UserError: always.
    """
    raise UserError(
        f"protocol.tasks: use_prompt {name!r} renders templates of a library; to allow it set {KEY}"
    )
