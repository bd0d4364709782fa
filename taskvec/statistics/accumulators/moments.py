"""Second moments of linear layers' inputs, streamed."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from taskvec.statistics import symmetric
from taskvec.statistics.passes.accumulator import Accumulator
from taskvec.statistics.passes.survey import Survey
from taskvec.statistics.passes.taps import Visitors
from taskvec.statistics.passes.tokens import Tokens
from taskvec.statistics.values import LayerMoments


class InputMoment:
    """Sum and second moment of rows in their dtype, from which the moment with an appended constant 1 follows."""

    def __init__(self, like: Tensor):
        width = like.shape[1]
        self.gram = like.new_zeros(width, width)
        self.total = like.new_zeros(width)
        self.count = 0

    def add(self, rows: Tensor) -> None:
        """Add the rows [n, d]."""
        self.gram.addmm_(rows.T, rows)
        self.total += rows.sum(0)
        self.count += len(rows)

    def mean(self, constant: bool) -> Tensor:
        """Return the mean of a a^T [d, d], or of [a; 1][a; 1]^T [d + 1, d + 1] where ``constant``."""
        if not constant:
            return self.gram / self.count
        corner = self.total.new_tensor([self.count])
        left = torch.cat([self.gram, self.total.unsqueeze(0)])
        right = torch.cat([self.total, corner])
        square = torch.cat([left, right.unsqueeze(1)], dim=1)
        return square.div_(self.count)


class FoldedMoment:
    """Sum and second moment of rows in float64, the second folded (:mod:`taskvec.statistics.symmetric`).

    Products are taken in the dtype of the rows.
    """

    def __init__(self, like: Tensor):
        width = like.shape[1]
        self.gram = symmetric.zeros(width, like)
        self.total = like.new_zeros(width, dtype=torch.float64)
        self.count = 0

    def add(self, rows: Tensor) -> None:
        """Add the rows [n, d]."""
        symmetric.add_products(self.gram, rows)
        self.total += rows.sum(0, dtype=torch.float64)
        self.count += len(rows)


class InputSums(Accumulator):
    """The moments of the inputs of all linear layers; products in ``precision``, sums in float64."""

    def __init__(self, survey: Survey, precision: str):
        self.precision = precision
        self.places = []
        self.untracked = {}
        for layer in survey.model.layers:
            name = layer.name
            place = survey.tokens_at(name, "input")
            if place is None:
                self.untracked[name] = survey.refusal(name)
            else:
                self.places.append(place)
        self.sources = survey.sources(self.places)
        self.moments = {}

    def visitors(self, side: int) -> list[Visitors]:
        """Return a tap for each layer that does not share another's input."""
        visitors = {}
        for place in self.places:
            if self.sources[place.module] == place.module:
                visitors[place] = partial(self._visit, place.module)
        return [visitors]

    def _visit(self, name: str, tokens: Tokens) -> None:
        rows = tokens.rows()
        if name not in self.moments:
            self.moments[name] = FoldedMoment(rows)
        self.moments[name].add(rows)

    def finish(self, examples: int) -> LayerMoments:
        """Return the moments by layer."""
        tensors = {}
        rows = {}
        for name, moment in self.moments.items():
            tensors[f"{name}/gram"] = moment.gram
            tensors[f"{name}/total"] = moment.total
            rows[name] = moment.count
        meta = {
            "sources": self.sources,
            "rows": rows,
            "untracked": self.untracked,
            "examples": examples,
        }
        return LayerMoments(tensors, meta)
