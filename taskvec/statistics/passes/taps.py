"""Hooks that show the inputs and outputs of modules, and the gradients of their outputs, while a model runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from taskvec.statistics.passes.tokens import Tokens, tokens_of

OnGradient = Callable[[Tokens], None]
OnTokens = Callable[[Tokens], OnGradient | None]


class Place(NamedTuple):
    """What a tap looks at: the input or the output of a module.

    ``call`` counts the module's calls within one forward pass; None: it must be called once.
    """

    module: str
    side: Literal["input", "output"] = "input"
    call: int | None = None


Visitors: TypeAlias = Mapping[Place, OnTokens]


class Taps:
    """A context in which each place's visitor sees the tokens there.

    What a visitor returns sees the gradient of its module's output, once per backward pass while ``listening``: several
    owners of taps run backwards through one graph, each for itself. Without ``gradient`` it is not asked for, and no
    graph starts here. Tokens come in ``dtype``.
    """

    def __init__(
        self,
        module: nn.Module,
        visitors: Visitors,
        dtype: torch.dtype,
        *,
        gradient: bool,
    ):
        self.module, self.dtype, self.gradient = module, dtype, gradient
        self.listening = False
        self._visitors = {}
        for place, visitor in visitors.items():
            place = Place(*place)
            self._visitors.setdefault(place.module, []).append((place, visitor))
        self._calls = {}
        self._examples, self._real = 0, None
        self._handles = []

    def __enter__(self) -> Taps:
        for name in self._visitors:
            module = self.module.get_submodule(name)
            handle = module.register_forward_hook(partial(self._visit, name))
            self._handles.append(handle)
        return self

    def __exit__(self, *exception: object) -> None:
        while self._handles:
            self._handles.pop().remove()

    def begin(self, examples: int, real: Tensor | None) -> None:
        """Start a forward pass over ``examples`` examples whose real tokens are ``real`` [N, L] bool (None: all)."""
        self._examples, self._real = examples, real
        self._calls = dict.fromkeys(self._visitors, 0)

    def end(self) -> None:
        """End a forward pass; the module may run for others, as where a pair has one model on both sides."""
        self._calls = {}

    def _visit(self, name: str, module: nn.Module, inputs: tuple, output: Tensor) -> None:
        if name not in self._calls:
            return
        call = self._calls[name]
        self._calls[name] += 1
        for place, visitor in self._visitors[name]:
            if place.call is None and call > 0:
                raise ValueError(f"{name} is called more than once per pass")
            if place.call is not None and place.call != call:
                continue
            values = inputs[0] if place.side == "input" else output
            on_gradient = visitor(self._tokens(name, values))
            if on_gradient and self.gradient:
                self._watch(name, output, on_gradient)

    def _watch(self, name: str, output: Tensor, on_gradient: OnGradient) -> None:
        if not output.requires_grad:
            # The weights are frozen: the graph starts at the first tapped output
            output.requires_grad_()

        def hook(gradient: Tensor) -> None:
            if self.listening:
                on_gradient(self._tokens(name, gradient))

        output.register_hook(hook)

    def _tokens(self, name: str, values: Tensor) -> Tokens:
        try:
            return tokens_of(values, self._examples, self._real, self.dtype)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
