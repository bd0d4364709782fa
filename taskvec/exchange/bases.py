"""A backbone by its name or by the place of its files, and its weights as they are stored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from taskvec.errors import UserError
from taskvec.registry import did_you_mean
from taskvec.runner import compose
from taskvec.runner.configs import options

if TYPE_CHECKING:
    from taskvec.checkpoints.reading import Checkpoint


def backbone_of(base: str) -> Any:
    """Return the backbone of a preset's name, or of a model's folder or name on the hub.

    Raises:
        UserError: if it is neither.
    """
    compose.register_all()
    presets = options("backbone")
    words = [f"backbone={base}"] if base in presets else _words(base, presets)
    return compose.resolve(compose.compose(words)).backbone


def _words(place: str, presets: list[str]) -> list[str]:
    """Return the overrides that choose the model in a folder.

    Raises:
        UserError: if there is none, or of a family that is not covered.
    """
    from taskvec.checkpoints.reading import open_checkpoint
    from taskvec.models.lm_layouts import LAYOUTS
    from taskvec.runner.quoting import quote

    try:
        found = open_checkpoint(place, "base")
    except UserError as error:
        raise UserError(f"{error}; backbones by name{did_you_mean(place, presets)}") from error
    if found.kind == "open_clip":
        return ["backbone=clip", f"backbone.architecture={quote(place)}"]
    layout = LAYOUTS.get((found.config or {}).get("model_type"))
    if found.kind == "file" or layout is None:
        raise UserError(
            f"base: {place}: no model of a family that is covered; give a backbone's name"
        )
    return [f"backbone={layout.style}", f"backbone.model={quote(place)}"]


def checkpoint_of(backbone: Any) -> Checkpoint:
    """Return a backbone's weights as they are stored, mapped and not read.

    Raises:
        UserError: if they are not here.
    """
    from taskvec.checkpoints.reading import open_checkpoint

    return open_checkpoint(backbone.place, "backbone")
