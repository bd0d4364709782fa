"""Activation spaces: every parameter covered, lengths agree, and what is observed is what the axes say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_language_models import FAMILIES, families, token_rows  # noqa: F401 (a fixture)

from taskvec.models.base import Backbone, Model
from taskvec.models.clip.backbone import Clip, ClipModel
from taskvec.models.clip.config import VisionConfig
from taskvec.models.clip.spaces import clip_spaces
from taskvec.models.clip.vit import VisionTransformer
from taskvec.models.spaces import Spaces

TOWERS = [
    VisionConfig(12, (16, 16), (8, 8), 16, 2, 2, 40),
    VisionConfig(
        12, (16, 16), (4, 4), 16, 2, 2, 40, ln_pre=False, ls_init_value=0.1, pool_type="avg"
    ),
]


def observations(model: Model, inputs: torch.Tensor, observed: dict) -> dict[Any, torch.Tensor]:
    """Run the model and return the first tensor that was seen at each place."""
    modules, found = dict(model.module.named_modules()), {}
    handles = []
    for space, (name, side) in observed.items():

        def hook(_, arguments, output, space=space, side=side):
            found.setdefault(space, arguments[0] if side == "input" else output)

        handles.append(modules[name].register_forward_hook(hook))
    with torch.no_grad():
        model.module(*model.prepare(inputs))
    for handle in handles:
        handle.remove()
    return found


def check(spaces: Spaces, model: Model, inputs: torch.Tensor) -> dict[str, int]:
    """Compare lengths of axes with each other and with what is seen; return the spaces' lengths."""
    assert spaces.axes.keys() == model.parameters.keys()
    lengths: dict[str, int] = {}
    for name, axes in spaces.axes.items():
        shape = model.parameters[name].shape
        assert len(axes) == len(shape), name
        for space, length in zip(axes, shape, strict=True):
            if space is not None:
                assert lengths.setdefault(space, length) == length, (name, space)
    assert set(spaces.observed) <= set(lengths)
    seen = observations(model, inputs, spaces.observed)
    assert {space: tensor.shape[-1] for space, tensor in seen.items()} == {
        s: lengths[s] for s in spaces.observed
    }
    return lengths


@pytest.mark.parametrize("config", TOWERS)
def test_image_towers(config):
    model = ClipModel(VisionTransformer(config), [0.5] * 3, [0.5] * 3)
    spaces = clip_spaces(config).of(model.parameters)
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    lengths = check(spaces, model, images)
    assert set(spaces.observed) == set(lengths)
    assert spaces.axes["blocks.1.attn.q.weight"] == ("blocks.1.attn.q", "blocks.1.attn.in")
    assert spaces.axes["blocks.1.ln_1.bias"] == ("blocks.1.attn.in",)
    assert spaces.axes["projection.weight"] == ("embedding", "projection.in")


def test_a_shipped_tower_names_its_spaces_without_its_weights():
    backbone: Backbone = Clip(architecture="pkg://mini_clip_s")
    assert backbone.spaces().keys() == set(backbone.parameter_shapes())
    assert backbone.observed()["residual"] == ("ln_pre", "input")


@pytest.mark.parametrize("name", FAMILIES)
def test_language_models(families, name):  # noqa: F811
    family = families(name)
    spaces = Spaces(family.backbone.spaces(), family.backbone.observed())
    shapes = {name: tuple(weight.shape) for name, weight in family.model.parameters.items()}
    assert family.backbone.parameter_shapes() == shapes
    lengths = check(spaces, family.model, token_rows())
    assert set(lengths) - set(spaces.observed) == ({"conv"} if name == "deberta_v2_conv" else set())


@pytest.mark.parametrize("name", FAMILIES)
def test_a_shared_space_is_one_activation(families, name):  # noqa: F811
    """Whatever reads or writes a space reads or writes the same numbers."""
    family = families(name)
    modules, ends = dict(family.model.module.named_modules()), {}
    for parameter, axes in family.backbone.spaces().items():
        module, _, leaf = parameter.rpartition(".")
        if leaf == "weight" and module in modules and axes[0] is not None:
            ends |= {(axes[0], module, "output"): (module, "output")}
            ends |= {(axes[1], module, "input"): (module, "input")} if len(axes) == 2 else {}
    seen = observations(family.model, token_rows((14, 14)), ends)
    first: dict[str, torch.Tensor] = {}
    for (space, module, _), tensor in seen.items():
        rows = tensor.flatten(0, -2)
        assert torch.equal(first.setdefault(space, rows), rows), (space, module)
