"""KnOTS: merge the vectors in the basis of their common column space."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from taskvec.merge.base import Convention, Merge, TensorWise
from taskvec.needs import Given, Signed
from taskvec.registry import register

if TYPE_CHECKING:
    from taskvec.vectors import Tensors
    from taskvec.vectors.composition import Composition


@register("merge", "knots", paper="Stoica et al., ICLR 2025, arXiv 2410.19735, section 4")
class Knots(Merge):
    """theta_0 + alpha * U merge(diag(S) V_1^T, ..., diag(S) V_T^T), [tau_1 ... tau_T] = U S [V_1; ...]^T, by matrix.

    ``inner`` merges the blocks of all layers together: TIES (at ``density``, with its mean) or task arithmetic, which
    gives plain task arithmetic. Singular values up to ``drop`` are left out. ``scaled`` false merges the V_t and
    applies S afterwards. ``with_bias`` appends the bias of a layer to its matrix as a column. Made for LoRA: vectors
    that keep their factors are never multiplied out to find U. All other tensors, and those that ``exclude`` names, are
    merged by the same inner merge as they are.
    """

    kind: Literal["knots"] = "knots"
    inner: Literal["ties", "task_arithmetic"] = "ties"
    density: float = Field(0.2, gt=0, le=1)
    drop: float = Field(1e-5, ge=0)
    scaled: bool = True
    with_bias: bool = True
    exclude: tuple[str, ...] = ()

    stored = True
    conventions = (
        Convention("the authors' code", "", "alpha 0.6 for ViT-B"),
        Convention("FusionBench's basis helper", "merge.drop=0.0001"),
        Convention("merge-and-rebase", "merge.scaled=false"),
    )

    def compose(self, base: Tensors, vectors: Sequence[Signed], given: Given) -> Composition:
        """Return theta_0 + alpha * the merged vector."""
        from taskvec.merge.spectral.aligned import Layer, aligned, returned
        from taskvec.vectors import TaskVector
        from taskvec.vectors.composition import Scaled

        deltas = self.checked(vectors)
        layers = [
            Layer(name, self._bias_of(name, base)) for name in base if self._is_matrix(base, name)
        ]
        taken = {name for layer in layers for name in layer.names}
        blocks = aligned(layers, base, vectors, self.drop, self.scaled)
        inner = self._inner()
        together = inner.merged(blocks.shapes, blocks.vectors, given)
        merged = returned(blocks, together, base)
        rest_base = {name: tensor for name, tensor in base.items() if name not in taken}
        rest = []
        for delta in deltas:
            rest.append({name: delta[name] for name in delta if name not in taken})
        merged |= inner.merged(rest_base, rest, given)
        return Scaled(base, TaskVector(merged))

    def _inner(self) -> TensorWise:
        from taskvec.merge.sparse.ties import Ties
        from taskvec.merge.task_arithmetic import TaskArithmetic

        return Ties(density=self.density) if self.inner == "ties" else TaskArithmetic()

    def _is_matrix(self, base: Tensors, name: str) -> bool:
        excluded = any(fnmatchcase(name, pattern) for pattern in self.exclude)
        return base[name].ndim == 2 and base[name].numel() > 0 and not excluded

    def _bias_of(self, name: str, base: Tensors) -> str | None:
        bias = name.removesuffix("weight") + "bias"
        fits = self.with_bias and name.endswith("weight") and bias in base
        return bias if fits and base[bias].shape == base[name].shape[:1] else None
