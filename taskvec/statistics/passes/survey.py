"""What one forward pass over a few examples shows: which modules are called, how often, and with which tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from taskvec.statistics.passes.taps import Place
from taskvec.statistics.passes.tokens import tokens_of

EXAMPLES = 2  # more than one, so that a first dimension of 1 is told from the examples


class Seen(NamedTuple):
    """A tensor at a module: its number in the pass (the same object, the same number), its dimensions, and what speaks
    against reading it as one row of tokens per example.
    """

    number: int
    ndim: int
    misfit: str | None


class Call(NamedTuple):
    """One call of a module: its first positional input and its output, None where they are no tensor."""

    input: Seen | None
    output: Seen | None


@dataclass(frozen=True)
class Survey:
    """A model at some weights with a task's head, and the calls of its modules, in order, in one forward pass.

    ``parameters`` is empty at theta_0.
    """

    model: Any
    parameters: Mapping[str, Tensor]
    head: Tensor | None
    calls: Mapping[str, list[Call]]

    def refusal(self, module: str) -> str | None:
        """Return why a module's tokens cannot be told apart by example, or the gradients of its weights not be summed.

        Such are modules that are not called or called several times, and those whose input or output is not one row of
        tokens per example (DeBERTa's relative positions).
        """
        calls = self.calls.get(module, [])
        if len(calls) != 1:
            return f"it is called {len(calls)} times per pass"
        for seen in (calls[0].output, calls[0].input):
            if seen is None:
                return "its first argument or its output is no tensor"
            if seen.misfit is not None:
                return seen.misfit
        return None

    def tokens_at(self, module: str, side: Literal["input", "output"]) -> Place | None:
        """Return a module's input or output in the one call where it has a row per token; None if none has, or several.

        A key projection that DeBERTa also applies to its relative positions has one.
        """
        found = []
        for number, call in enumerate(self.calls.get(module, [])):
            seen = getattr(call, side)
            if seen is not None and seen.misfit is None:
                found.append(Place(module, side, number))
        return found[0] if len(found) == 1 else None

    def seen(self, place: Place) -> Seen:
        """Return what was seen at a place that has tokens."""
        calls = self.calls[place.module]
        return getattr(calls[place.call or 0], place.side)

    def sources(self, places: Iterable[Place]) -> dict[str, str]:
        """Return, for each place's module, the first of the modules that is given the same tensor (q for k and v)."""
        first = {}
        sources = {}
        for place in places:
            number = self.seen(place).number
            sources[place.module] = first.setdefault(number, place.module)
        return sources


@torch.no_grad()
def survey(
    model: Any, parameters: Mapping[str, Tensor], head: Tensor | None, inputs: Tensor
) -> Survey:
    """Run a model forward over a few examples and note every module's calls."""
    inputs = inputs[:EXAMPLES]
    notes = _Notes(len(inputs), model.tokens(inputs))
    handles = []
    for name, module in model.module.named_modules(remove_duplicate=False):
        handle = module.register_forward_hook(partial(notes.visit, name))
        handles.append(handle)
    try:
        model.features(parameters, inputs, head)
    finally:
        for handle in handles:
            handle.remove()
    return Survey(model, parameters, head, notes.calls)


class _Notes:
    """The calls seen so far; tensors are kept while the pass runs, so that no two share an address."""

    def __init__(self, examples: int, real: Tensor | None):
        self.examples, self.real = examples, real
        self.calls = {}
        self._numbers = {}
        self._kept = []

    def visit(self, name: str, module: nn.Module, inputs: tuple, output: object) -> None:
        given = inputs[0] if inputs else None
        call = Call(self._seen(module, given), self._seen(module, output))
        self.calls.setdefault(name, []).append(call)

    def _seen(self, module: nn.Module, values: object) -> Seen | None:
        if not isinstance(values, Tensor):
            return None
        if id(values) not in self._numbers:
            self._numbers[id(values)] = len(self._kept)
            self._kept.append(values)
        return Seen(self._numbers[id(values)], values.ndim, self._misfit(module, values))

    def _misfit(self, module: nn.Module, values: Tensor) -> str | None:
        if isinstance(module, nn.Linear) and values.ndim > 3:
            return f"its shape {list(values.shape)} has no one dimension of tokens"
        try:
            tokens_of(values, self.examples, self.real, values.dtype)
        except ValueError as error:
            return str(error)
        return None
