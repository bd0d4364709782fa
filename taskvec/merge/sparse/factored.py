"""Merges that can act on the factors of LoRA vectors instead of the deltas that they make."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from taskvec.merge.base import Weighted
from taskvec.merge.piece import Deltas
from taskvec.needs import Given, Signed

if TYPE_CHECKING:
    from taskvec.vectors import Tensors
    from taskvec.vectors.composition import Composition


class Factored(Weighted):
    """A merge of deltas, or (``of`` "factors") of the factors B [o, r] and A [r, i] of vectors that are LoRA adapters.

    Factors are merged each by itself, with the root of scale and weight on both, and multiplied afterwards, as peft
    does. The product of sums has cross terms: it is not the merge of the deltas. All ranks must be the same.
    """

    of: Literal["deltas", "factors"] = "deltas"

    def compose(self, base: Tensors, vectors: Sequence[Signed], given: Given) -> Composition:
        """Return theta_0 + alpha * the merged vector."""
        from taskvec.merge.sparse.factors import of_vectors, products
        from taskvec.vectors.composition import Scaled

        if self.of == "deltas":
            return super().compose(base, vectors, given)
        self.checked(vectors)
        factors: Deltas = of_vectors(vectors)
        shapes: dict[str, Any] = {}
        for own in factors:
            shapes |= own
        roots = [
            math.copysign(math.sqrt(abs(weight)), weight)
            for weight in self.weights_for(len(vectors))
        ]
        inner = self.model_copy(update={"of": "deltas", "weights": tuple(roots)})
        return Scaled(base, products(inner.merged(shapes, factors, given)))
