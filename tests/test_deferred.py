"""Vectors that stay in their files: the same numbers as in memory, one tensor at a time."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from safetensors.torch import load_file

from taskvec.models.language import gpt2
from taskvec.vectors import Deferred, TaskVector, converted, save_tensors
from taskvec.vectors.composition import Scaled


def tensors(seed: int, names: str = "abc") -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(3, 5 + i, generator=generator) for i, name in enumerate(names)}


@pytest.fixture
def opened(tmp_path):
    """Two vectors in memory, and the same from their files; each holds a name that the other lacks."""
    plain = [
        TaskVector(tensors(1, "abc"), {"base_hash": "h"}),
        TaskVector(tensors(2, "abcd"), {"base_hash": "h"}),
    ]
    plain[0]._deltas["e"] = torch.ones(2)
    for i, vector in enumerate(plain):
        vector.save(tmp_path / f"{i}")
    return plain, [TaskVector.load(tmp_path / f"{i}") for i in range(2)]


def test_arithmetic_is_that_in_memory(opened):
    (a, b), (x, y) = opened
    for plain, lazy in (
        (a + b, x + y),
        (sum([a, b]), sum([x, y])),
        (0.3 * a - b / 2, 0.3 * x - y / 2),
        (-a, -x),
        (a + b, a + y),
        (a.to(torch.float64), x.to(torch.float64)),
        (a * 1, x * 1),
    ):
        assert lazy.deferred and not plain.deferred and not lazy.materialised().deferred
        assert list(lazy) == list(plain) and lazy.metadata == plain.metadata
        assert all(
            torch.equal(lazy[name], delta) and lazy[name].dtype == delta.dtype
            for name, delta in plain.items()
        )
        assert float(lazy.norm()) == float(plain.norm())
    base = tensors(3, "abcd") | {"e": torch.zeros(2)}
    merged, expected = (x + y).apply_to(base, 0.7), (a + b).apply_to(base, 0.7)
    assert all(torch.equal(merged[name], expected[name]) for name in base)


def test_a_look_makes_one_tensor_and_checks_make_none(opened):
    looks = Counter()
    source = tensors(1)

    def make(name: str) -> torch.Tensor:
        looks[name] += 1
        return source[name]

    vector = TaskVector(
        Deferred({name: tensor.to("meta") for name, tensor in source.items()}, make)
    )
    total = vector + 2 * vector
    assert "a" in total and "z" not in total and len(total) == 3 and not looks
    with pytest.raises(ValueError, match="a: shapes differ"):
        total + TaskVector({"a": torch.zeros(2)})
    with pytest.raises(KeyError, match="no parameter b, c"):
        total.apply_to({"a": source["a"]})
    assert not looks
    assert torch.equal(total["a"], 3 * source["a"]) and looks == {"a": 2}
    composition = Scaled(source, total)
    assert (
        not composition.direction().deferred and composition.direction() is composition.direction()
    )


def test_a_difference_is_saved_tensor_by_tensor(tmp_path):
    base, tuned = tensors(1), tensors(2) | {"steps": torch.tensor(3)}
    base["steps"] = torch.tensor(0)
    TaskVector.between(base, tuned, {"base_hash": "h"}, deferred=True).save(tmp_path / "v")
    found, expected = TaskVector.load(tmp_path / "v"), TaskVector.between(base, tuned)
    assert found.metadata == {"base_hash": "h"} and list(found) == list(expected) == ["a", "b", "c"]
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_files_are_safetensors_of_every_dtype(tmp_path):
    state = {
        "flag": torch.tensor([True, False, True]), "half": torch.randn(3, 1).half(), "brain": torch.randn(5).bfloat16(),
        "empty": torch.zeros(0, 4), "point": torch.tensor(2.5, dtype=torch.float64), "turned": torch.randn(3, 4).T,
        "number": torch.arange(3),
    }  # fmt: skip
    save_tensors(tmp_path / "file", state, {"format": "pt"})
    found = load_file(tmp_path / "file")
    assert found.keys() == state.keys()
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype
        for name, tensor in state.items()
    )
    with pytest.raises(ValueError, match="no torch.complex64"):
        save_tensors(tmp_path / "file", {"z": torch.zeros(1, dtype=torch.complex64)})
    with pytest.raises(ValueError, match="announced"):
        save_tensors(
            tmp_path / "file",
            Deferred({"a": torch.zeros(2, device="meta")}, lambda name: torch.zeros(3)),
        )


def test_a_state_is_converted_entry_by_entry():
    stem = "transformer.h.0.attn.c_attn"
    state = {
        f"{stem}.{part}.{kind}": torch.randn(*shape)
        for part in "qkv"
        for kind, shape in (("weight", (4, 4)), ("bias", (4,)))
    }
    state |= {
        "transformer.h.0.mlp.c_fc.weight": torch.randn(8, 4),
        "transformer.wte.weight": torch.randn(9, 4),
    }
    found, expected = (
        converted(state, gpt2.to_transformers, gpt2.from_transformers),
        gpt2.to_transformers(state),
    )
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
