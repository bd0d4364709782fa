"""Activation spaces: which axis of which parameter lives where, and at which module each space can be seen.

Two axes have the same space exactly if one change of coordinates must serve both. q, k, v and the gain and shift of the
norm before them share the space of that norm's output; a layer's output is a space of its own, and so is a layer's
input where something lies between (attention before ``attn.out``, the activation function before ``mlp.proj``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from taskvec.errors import UserError

# The space of each axis; None for pixels, positions, words, kernels
Axes: TypeAlias = tuple[str | None, ...]
Seen: TypeAlias = tuple[str, Literal["input", "output"]]  # a module's path, and which side of it

# The input of a layer by its role, as a name within its block.
_INPUTS = {
    "attn.q": "attn.in",
    "attn.k": "attn.in",
    "attn.v": "attn.in",
    "attn.out": "attn.heads",
    "cross.q": "cross.in",
    "cross.out": "cross.heads",
    "mlp.fc": "mlp.in",
    "mlp.gate": "mlp.in",
    "mlp.up": "mlp.in",
    "mlp.proj": "mlp.hidden",
}
# The same for layers whose input comes from outside the block.
_SHARED_INPUTS = {
    "cross.k": "encoder.final",
    "cross.v": "encoder.final",
    "attn.pos_k": "relative",
    "attn.pos_q": "relative",
}


@dataclass
class Spaces:
    """The spaces of a model, gathered module by module.

    ``axes`` maps a parameter to the space of each of its axes, ``observed`` a space to a module and its side: the
    module's first positional input, or its output; the space is the last dimension.
    """

    axes: dict[str, Axes] = field(default_factory=dict)
    observed: dict[str, Seen] = field(default_factory=dict)

    def add_linear(self, module: str, inputs: str, outputs: str) -> None:
        """Enter a linear layer: weight [out, in] and bias [out]."""
        self.axes[f"{module}.weight"] = (outputs, inputs)
        self.axes[f"{module}.bias"] = (outputs,)
        self.observed.setdefault(inputs, (module, "input"))
        self.observed.setdefault(outputs, (module, "output"))

    def add_block_layer(self, block: str, module: str, role: str) -> None:
        """Enter a linear layer of a block by its role."""
        inputs = _SHARED_INPUTS[role] if role in _SHARED_INPUTS else f"{block}.{_INPUTS[role]}"
        self.add_linear(module, inputs, f"{block}.{role}")

    def add_norm(self, module: str, space: str) -> None:
        """Enter a norm whose output is ``space``: gain and shift [out].

        The space is observed here, not at the layers that read it: DeBERTa v3 calls those a second time, on distances.
        """
        self.axes[f"{module}.weight"] = (space,)
        self.axes[f"{module}.bias"] = (space,)
        self.observed[space] = (module, "output")

    def of(self, names: Iterable[str]) -> Spaces:
        """Return the spaces of these parameters alone.

        Raises:
            UserError: naming a parameter whose spaces are not known.
        """
        names = list(names)
        unknown = [name for name in names if name not in self.axes]
        if unknown:
            raise UserError(
                f"backbone: the spaces of {unknown[0]} are not known, so it cannot be carried to another"
            )
        axes = {name: self.axes[name] for name in names}
        used = {space for spaces in axes.values() for space in spaces}
        observed = {space: seen for space, seen in self.observed.items() if space in used}
        return Spaces(axes, observed)
