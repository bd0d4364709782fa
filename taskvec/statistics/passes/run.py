"""One pass over the examples for several accumulators: forward, and backward from the roots that they ask for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from taskvec.needs import Observe
from taskvec.statistics.passes.accumulator import Accumulator, Forward, Root
from taskvec.statistics.passes.batches import Piece, regrouped
from taskvec.statistics.passes.survey import Survey
from taskvec.statistics.passes.taps import Taps


class Member:
    """An accumulator in a pass, with its taps on the models."""

    def __init__(
        self,
        accumulator: Accumulator,
        surveys: Sequence[Survey],
        *,
        gradient: bool,
    ):
        self.accumulator = accumulator
        self.dtype = getattr(torch, accumulator.precision)
        self.copies = accumulator.copies()
        self.taps = []
        for side, survey in enumerate(surveys):
            module = survey.model.module
            groups = accumulator.visitors(side)
            taps = [Taps(module, group, self.dtype, gradient=gradient) for group in groups]
            self.taps.append(taps)
        self.listening = False

    def listen(self, side: int, on: bool) -> None:
        """Let the member's taps and copies see gradients, or not."""
        self.listening = on
        for taps in self.taps[side]:
            taps.listening = on

    def saw(self, name: str, gradient: Tensor) -> None:
        """Hand the gradients [N, 1, d] of a parameter's copies on, if the backward pass is the member's own."""
        if self.listening:
            look = self.copies[name]
            look(gradient.squeeze(1).to(self.dtype))


class Pass:
    """One pass of one model, or of two on the same examples, for accumulators that agree on the size of groups.

    ``gradient``: graphs are built and the accumulators' roots followed.
    """

    def __init__(
        self,
        surveys: Sequence[Survey],
        accumulators: Sequence[Accumulator],
        *,
        gradient: bool,
    ):
        self.surveys = surveys
        self.gradient = gradient
        self.members = [
            Member(accumulator, surveys, gradient=gradient) for accumulator in accumulators
        ]
        self.group = accumulators[0].group
        self.leaves = [{} for _ in surveys]
        if any(accumulator.weights for accumulator in accumulators):
            self.leaves = [_leaves(survey) for survey in surveys]

    def __call__(
        self,
        pieces: Sequence[Piece],
        labels: Tensor | None,
        observe: Observe | None,
    ) -> int:
        """Run over all pieces and return the number of examples; ``observe`` is told pieces done and in all."""
        done = 0
        with ExitStack() as stack:
            for member in self.members:
                for taps in chain.from_iterable(member.taps):
                    stack.enter_context(taps)
            # in passes without gradients too, which build no graph as the weights are frozen: attention chooses its
            # kernel by this mode, and a statistic should come out of any pass with the same bits
            stack.enter_context(torch.enable_grad())
            for piece in regrouped(_told(pieces, observe), self.group):
                for side, inputs in enumerate(piece):
                    self._run(side, inputs, labels, done)
                done += len(piece[0])
        return done

    def _run(self, side: int, inputs: Tensor, labels: Tensor | None, first: int) -> None:
        """Run one model over the examples from number ``first``, forward and where wanted backward."""
        survey = self.surveys[side]
        count = len(inputs)
        real = survey.model.tokens(inputs)
        for member in self.members:
            for taps in member.taps[side]:
                taps.begin(count, real)
        parameters = {**survey.parameters, **self.leaves[side]}
        parameters |= self._copied(survey, parameters, count)
        with torch.autocast(_device(survey.model).type, enabled=False):
            features = survey.model.features(parameters, inputs, survey.head)
            for member in self.members:
                for taps in member.taps[side]:
                    taps.end()
            if not self.gradient:
                return
            if labels is not None:
                labels = labels[first : first + count].to(features.device)
            forward = Forward(
                model=survey.model,
                parameters=parameters,
                head=survey.head,
                side=side,
                first=first,
                features=features,
                labels=labels,
            )
            self._backward(forward)

    def _copied(
        self,
        survey: Survey,
        parameters: Mapping[str, Tensor],
        examples: int,
    ) -> dict[str, Tensor]:
        """Return a copy for each example of the parameters whose gradients must stay apart."""
        weights = {**survey.model.parameters, **parameters}
        copied = {}
        for member in self.members:
            for name in member.copies:
                if name not in copied:
                    copies = weights[name].repeat(examples, 1, 1)
                    copied[name] = copies if copies.requires_grad else copies.requires_grad_()
                copied[name].register_hook(partial(member.saw, name))
        return copied

    def _backward(self, forward: Forward) -> None:
        """Run backwards from every root; the graph is freed with the last one."""
        roots = []
        for member in self.members:
            for root in member.accumulator.roots(forward):
                roots.append((member, root))
        for number, (member, root) in enumerate(roots, start=1):
            retain = number < len(roots)
            member.listen(forward.side, True)
            try:
                self._follow(root, self.leaves[forward.side], retain)
            finally:
                member.listen(forward.side, False)

    def _follow(self, root: Root, leaves: Mapping[str, Tensor], retain: bool) -> None:
        gradient = None
        if root.gradient is not None:
            gradient = root.gradient()
        if root.receive is None:
            torch.autograd.backward(root.tensor, gradient, retain_graph=retain)
            for leaf in leaves.values():
                leaf.grad = None  # of another member's weights
            return
        found = torch.autograd.grad(
            root.tensor,
            list(leaves.values()),
            gradient,
            retain_graph=retain,
            materialize_grads=True,  # zeros where the root does not depend on a weight
        )
        root.receive(dict(zip(leaves, found, strict=True)))


def _device(model: Any) -> torch.device:
    weight = next(iter(model.parameters.values()))
    return weight.device


def _told(pieces: Sequence[Piece], observe: Observe | None) -> Iterator[Piece]:
    """Yield the pieces, and tell ``observe`` when the next one is asked for."""
    for done, piece in enumerate(pieces, start=1):
        yield piece
        if observe:
            observe(done, len(pieces), {})


def _leaves(survey: Survey) -> dict[str, Tensor]:
    """Return the model's editable weights as leaves that gradients are taken with respect to."""
    weights = {**survey.model.parameters, **survey.parameters}
    return {name: weight.detach().requires_grad_() for name, weight in weights.items()}
