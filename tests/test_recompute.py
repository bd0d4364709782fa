"""Gradient checkpointing: the same gradients with other weights than the module's own, less memory, no trace left."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import world_text
from memory import Given, Memory
from pydantic import ValidationError
from torch import nn
from torch.func import functional_call, jvp
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from taskvec import registry
from taskvec.finetune.full import Full
from taskvec.models.clip.config import VisionConfig
from taskvec.models.clip.vit import VisionTransformer
from taskvec.training.recompute import offload, recomputed

FAMILIES = [*world_text.MODELS, "clip"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return world_text.build(tmp_path_factory.mktemp("lms"))


def language_model(folder: Path, name: str):
    kind = registry.lookup("backbone", world_text.MODELS[name][0]).schema
    backbone = kind(model=f"{folder}/models/{name}", tokenizer="pkg://mini_lm_tokenizer")
    model = backbone.load("cpu")
    model.backbone = backbone
    return backbone, model


def problem(folder: Path, name: str, layers: int = 3) -> tuple[nn.Module, Callable, dict]:
    """A float64 module and a loss of other weights than its own, and those weights."""
    torch.manual_seed(0)
    if name == "clip":
        config = VisionConfig(embed_dim=8, image_size=(12, 12), patch_size=(4, 4), width=16, layers=layers, heads=2,
                              mlp_width=32)  # fmt: skip
        module, arguments = (
            VisionTransformer(config),
            (torch.randn(4, 3, 12, 12, dtype=torch.float64),),
        )
        module = module.double().eval()
    else:
        _, model = language_model(folder, name)
        module, inputs = model.module.double(), torch.randint(3, 500, (4, 24), dtype=torch.int32)
        arguments = model.prepare(inputs)
    moved = {
        n: (p.detach() + 0.02 * torch.randn_like(p)).requires_grad_()
        for n, p in module.named_parameters()
    }

    def loss() -> torch.Tensor:
        return functional_call(module, moved, arguments).square().mean()

    loss.arguments = arguments
    return module, loss, moved


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_are_those_without_it(folder, name):
    module, loss, moved = problem(folder, name)
    plain = torch.autograd.grad(loss(), list(moved.values()), allow_unused=True)
    with recomputed(module):
        found = torch.autograd.grad(loss(), list(moved.values()), allow_unused=True)
    assert sum(a is not None and bool(a.any()) for a in plain) > len(plain) // 2
    for parameter, a, b in zip(moved, plain, found, strict=True):
        assert (a is None) == (b is None), parameter
        assert a is None or torch.allclose(a, b, rtol=1e-12, atol=0), parameter
    assert not any("forward" in vars(part) for part in module.modules())


@pytest.mark.parametrize("name", FAMILIES)
def test_offloaded_blocks_give_the_same_values_gradients_and_derivatives(folder, name):
    module, loss, moved = problem(folder, name)
    names, weights = list(moved), list(moved.values())

    def along(*leaves: torch.Tensor) -> torch.Tensor:
        return functional_call(module, dict(zip(names, leaves, strict=True)), loss.arguments)

    def values() -> list:
        gradients = torch.autograd.grad(loss(), weights, allow_unused=True)
        with torch.no_grad():
            plain = [w.detach() for w in weights]
            return [
                *gradients,
                loss(),
                *jvp(along, tuple(plain), tuple(torch.ones_like(w) for w in plain)),
            ]

    expected = values()
    offload(module, "cpu")
    with recomputed(module):  # adds nothing to what offloading recomputes
        found = values()
    for a, b in zip(expected, found, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.allclose(a, b, rtol=1e-12, atol=1e-15)


def test_offloaded_blocks_compute_on_the_device(folder):
    module, loss, _ = problem(folder, "clip")
    offload(module, "meta")
    # No data to bring back
    with torch.no_grad(), pytest.raises(NotImplementedError, match="meta tensor"):
        loss()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_device_holds_one_block_at_a_time(folder):
    module, loss, moved = problem(folder, "clip", layers=12)
    expected = torch.autograd.grad(loss(), list(moved.values()))
    offload(module, "cuda")
    torch.autograd.grad(loss(), list(moved.values()))  # its libraries' own memory stays
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    found = torch.autograd.grad(loss(), list(moved.values()))
    held = torch.cuda.max_memory_allocated() - before
    assert held < 0.5 * sum(w.nbytes for w in moved.values())
    assert all(
        torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(expected, found, strict=True)
    )


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors made inside that are alive, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.live, self.peak, self.known = 0, 0, set()

    def free(self, key: int, size: int) -> None:
        self.live -= size
        self.known.discard(key)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.known:
                    self.known.add(storage._cdata)
                    self.live += storage.nbytes()
                    weakref.finalize(storage, self.free, storage._cdata, storage.nbytes())
                    self.peak = max(self.peak, self.live)
        return out


def test_peak_memory_falls(folder):
    module, loss, moved = problem(folder, "clip", layers=12)
    peaks = []
    for wrap in (False, True):
        with LiveBytes() as counter:
            if wrap:
                with recomputed(module):
                    loss().backward()
            else:
                loss().backward()
        peaks.append(counter.peak)
        for parameter in moved.values():
            parameter.grad = None
    assert peaks[1] < 0.5 * peaks[0], peaks


def test_fine_tuning_gives_the_same_vector_and_fingerprint(folder):
    model = language_model(folder, "tiny_llama")[1]
    inputs = torch.randint(3, 500, (12, 10), generator=torch.Generator().manual_seed(1)).int()
    view = Memory(inputs, torch.arange(12) % 2, torch.tensor([7, 9]))
    settings = {"steps": 4, "warmup": 1, "batch_size": 6, "accumulation": 2, "lr": 1e-3}
    recipes = [Full(**settings, gradient_checkpointing=on) for on in (False, True)]
    plain, found = (recipe.learn(Given(model, {"t": view})) for recipe in recipes)
    assert recipes[0].identity() == recipes[1].identity()
    assert plain.vector.norm() > 0
    for name, delta in plain.vector.items():
        assert torch.equal(delta, found.vector[name]), name


def test_what_cannot_work_is_refused():
    with pytest.raises(
        ValidationError,
        match="gradient_checkpointing cannot go through the forward-mode derivative",
    ):
        Full(gradient_checkpointing=True, forward_mode="tangent")
    with pytest.raises(ValueError, match="no list of blocks"), recomputed(nn.Linear(2, 2)):
        pass
