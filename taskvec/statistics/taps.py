"""Hooks that show the inputs of modules and the gradients of their outputs while a model runs."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from taskvec.statistics.tokens import Tokens, tokens_of

OnGradient = Callable[[Tokens], None]
OnInput = Callable[[Tokens, str], OnGradient | None]


class Taps:
    """A context in which each named module's visitor sees its input, and what it returns sees the output's gradient.

    A visitor gets (input tokens, source); ``source`` is the first tapped module that was given the same tensor in this
    pass (q for k and v), so that work on a shared input is done once. What it returns is called once per backward pass.
    """

    def __init__(self, module: nn.Module, visitors: Mapping[str, OnInput], dtype: torch.dtype):
        self.module, self.visitors, self.dtype = module, visitors, dtype
        self.called: set[str] = set()
        self._sources: list[tuple[weakref.ref[Tensor], str]] = []
        self._examples, self._real = 0, None
        self._handles: list[Any] = []

    def __enter__(self) -> Taps:
        for name, visitor in self.visitors.items():
            hook = self._hook(name, visitor)
            self._handles.append(self.module.get_submodule(name).register_forward_hook(hook))
        return self

    def __exit__(self, *exception: object) -> None:
        while self._handles:
            self._handles.pop().remove()

    def begin(self, examples: int, real: Tensor | None) -> None:
        """Start a pass over ``examples`` examples whose real tokens are ``real`` [N, L] bool (None: all)."""
        self._examples, self._real = examples, real
        self.called, self._sources = set(), []

    def _hook(self, name: str, visitor: OnInput) -> Callable[[nn.Module, tuple, Tensor], None]:
        def tokens(values: Tensor) -> Tokens:
            try:
                return tokens_of(values, self._examples, self._real, self.dtype)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None

        def visit(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            if name in self.called:
                raise ValueError(f"{name} is called more than once per pass")
            self.called.add(name)
            on_gradient = visitor(tokens(inputs[0]), self._source(inputs[0], name))
            if on_gradient and torch.is_grad_enabled():
                if not output.requires_grad:
                    output.requires_grad_()  # the weights are frozen: the graph starts at the first tapped output
                output.register_hook(lambda gradient: on_gradient(tokens(gradient)))

        return visit

    def _source(self, values: Tensor, name: str) -> str:
        self._sources = [(known, first) for known, first in self._sources if known() is not None]
        for known, first in self._sources:
            if known() is values:
                return first
        self._sources.append((weakref.ref(values), name))
        return name


def untappable(
    module: nn.Module, names: Iterable[str], run: Callable[[], object], examples: int, real: Tensor | None
) -> dict[str, str]:
    """Return why some modules' tokens cannot be told apart by example, by name, as one forward pass ``run`` shows.

    Such are modules that are not called, or called several times (their curvature would need sums over the calls), and
    those whose input is not one row of tokens per example (DeBERTa's relative positions).
    """
    reasons: dict[str, str] = {}
    calls = dict.fromkeys(names, 0)

    def hook(name: str) -> Callable[[nn.Module, tuple, Tensor], None]:
        def visit(part: nn.Module, inputs: tuple, output: Tensor) -> None:
            calls[name] += 1
            for values in (*inputs[:1], output):
                try:
                    tokens_of(values, examples, real, values.dtype)
                except ValueError as error:
                    reasons[name] = str(error)
                if isinstance(part, nn.Linear) and values.ndim > 3:
                    reasons[name] = f"its shape {list(values.shape)} has no one dimension of tokens"

        return visit

    handles = [module.get_submodule(name).register_forward_hook(hook(name)) for name in calls]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    for name, count in calls.items():
        if count != 1:
            reasons[name] = f"it is called {count} times per pass"
    return reasons
