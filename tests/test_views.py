"""Views, shards and what stays on a device: rows are the rows of the whole tensor, whatever they are stored in."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import world
from safetensors.torch import load_file
from torch import Tensor

from taskvec.data import shards
from taskvec.data.shards import OnDevice, Resident, Shards, row_count, sharded
from taskvec.data.views import NotGrantedError, View, chosen
from taskvec.errors import UserError
from taskvec.vectors.deferred import save_tensors

SEEDS = pytest.mark.parametrize("seed", [3, 1717])


def images(count: int, seed: int) -> Tensor:
    return torch.randint(0, 256, (count, 3, 4, 5), generator=generator(seed), dtype=torch.uint8)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def in_shards(whole: Tensor, size: int) -> Shards:
    return Shards(whole.split(size))


@SEEDS
@pytest.mark.parametrize("size", [1, 7, 10, 100])
def test_rows_are_those_of_the_whole_tensor(seed, size):
    whole = images(50, seed)
    view = View("t/train", in_shards(whole, size), torch.arange(50))
    rows = torch.randint(0, 50, (80,), generator=generator(seed))
    assert torch.equal(view.take(rows), whole[rows])
    assert torch.equal(view.take(slice(3, 41)), whole[3:41])
    assert torch.equal(view.take(slice(None)), whole)
    assert view.take(rows[:0]).shape == (0, 3, 4, 5)
    assert torch.equal(view.labels(rows), rows)
    assert torch.equal(view.labels(), torch.arange(50))
    view.take(slice(None)).zero_()  # a copy: what a method does to it stays with the method
    assert torch.equal(view.take(slice(None)), whole)


@SEEDS
def test_a_selection_is_a_view_of_its_rows(seed):
    whole = images(60, seed)
    view = View("t/train", in_shards(whole, 8), torch.arange(60), head=torch.ones(2))
    outer = torch.randperm(60, generator=generator(seed))[:30]
    inner = torch.randperm(30, generator=generator(seed + 1))[:11]
    part = view.select(outer).select(inner)
    assert len(part) == 11
    assert torch.equal(part.take(slice(None)), whole[outer[inner]])
    assert part.labels().tolist() == outer[inner].tolist()
    assert part.labels(torch.tensor([4])).item() == outer[inner[4]]
    assert part.head is view.head


@pytest.mark.parametrize(("count", "size"), [(0, 5), (1, 5), (5, 5), (11, 5), (1000, 500)])
def test_batches_cover_everything_once(count, size):
    view = world.view(torch.zeros(count, 3, 1, 1, dtype=torch.uint8))
    slices = list(view.batches(size))
    assert [i for s in slices for i in range(count)[s]] == list(range(count))
    assert all(s.stop - s.start == size for s in slices[:-1])
    order = torch.randperm(count)
    pieces = list(view.batches(size, order))
    assert [i for piece in pieces for i in piece.tolist()] == order.tolist()


def test_labels_are_a_grant():
    view = world.view(
        torch.zeros(3, 3, 1, 1, dtype=torch.uint8), torch.tensor([0.5, 1.0, 2.0]), name="own/test"
    )
    assert view.labelled and view.regression
    hidden = view.unlabelled()
    assert not hidden.labelled and hidden.regression and len(hidden) == 3
    for other in (hidden, hidden.select(torch.tensor([1])), hidden.to("cpu")):
        with pytest.raises(NotGrantedError, match="^labels of own/test were not granted$"):
            other.labels()
    assert issubclass(NotGrantedError, UserError) and issubclass(NotGrantedError, PermissionError)
    with pytest.raises(NotGrantedError):
        world.view(torch.zeros(2, 5, dtype=torch.int32)).labels()


@SEEDS
def test_texts_know_their_lengths(seed):
    lengths = torch.randint(1, 9, (20,), generator=generator(seed))
    tokens = torch.where(torch.arange(9) < lengths[:, None], 5, -1).int()
    view = View("t/test", in_shards(tokens, 6))
    assert torch.equal(view.lengths(), lengths)
    rows = torch.tensor([7, 2, 2])
    assert torch.equal(view.select(rows).lengths(), lengths[rows])
    assert world.view(images(2, seed)).lengths() is None


@SEEDS
def test_what_stays_on_a_device_fits_the_limit_and_the_rows_are_right(seed):
    whole = images(64, seed)
    stored = in_shards(whole, 8)
    limit = 3 * stored.parts[0].nbytes + 5
    room = Resident("cpu", limit)
    view = View("t/train", stored).to("cpu", room)
    for step in range(20):
        rows = torch.randint(0, 64, (40,), generator=generator(seed + step))
        assert torch.equal(view.take(rows), whole[rows])
        assert room.bytes == sum(entry.stored.nbytes for entry in room._entries.values()) <= limit
    assert room.bytes == 3 * stored.parts[0].nbytes, "what fits stays"


def test_shards_that_are_not_used_any_more_make_room(monkeypatch):
    monkeypatch.setattr(shards, "PATIENCE", 4)
    first, second = in_shards(images(16, 0), 8), in_shards(images(16, 1), 8)
    room = Resident("cpu", 2 * first.parts[0].nbytes)
    old, new = OnDevice(first, room), OnDevice(second, room)
    everything = torch.arange(16)
    old.take(everything)
    new.take(everything)
    assert set(room._entries) == {id(part) for part in first.parts}, (
        "a pass over more than fits moves no shard"
    )
    for _ in range(5):
        new.take(everything)
    assert set(room._entries) == {id(part) for part in second.parts}
    assert room.bytes == 2 * first.parts[0].nbytes


@SEEDS
@pytest.mark.parametrize("count", [1, 9, 10, 23])
def test_a_split_is_written_and_read_shard_by_shard(tmp_path, monkeypatch, seed, count):
    whole = images(count, seed)
    monkeypatch.setattr(shards, "BYTES", 10 * whole[0].numel() + 3)
    passes = []

    def rows():
        passes.append(0)
        for row in whole:
            passes[-1] += 1
            yield row

    made = sharded(rows, count, (3, 4, 5), beside={"labels": torch.arange(count)})
    assert row_count(made) == count and not any(passes)
    save_tensors(tmp_path / "split.safetensors", made)
    assert passes == [count], "one pass"
    read = load_file(tmp_path / "split.safetensors")
    names = ["inputs"] if count <= 10 else [f"inputs/{i:05d}" for i in range(-(-count // 10))]
    assert sorted(read) == sorted([*names, "labels"])
    assert all(len(read[name]) <= 10 for name in names)
    view = View.of(read, name="t/train")
    assert torch.equal(view.take(slice(None)), whole) and view.labels().tolist() == list(
        range(count)
    )
    assert torch.equal(made[names[-1]], read[names[-1]]) and torch.equal(
        made[names[0]], read[names[0]]
    )


@SEEDS
def test_a_budget_draws_rows_by_its_seed(seed):
    labels = torch.randint(0, 3, (90,), generator=generator(seed))
    view = world.view(torch.zeros(90, 3, 1, 1, dtype=torch.uint8), labels)

    def budget(**given):
        return SimpleNamespace(
            **({"count": None, "fraction": None, "shots": None, "seed": seed} | given)
        )

    for drawn, size in (
        (budget(count=12), 12),
        (budget(fraction=0.3), 27),
        (budget(fraction=1e-6), 1),
    ):
        rows = chosen(view, drawn)
        assert len(rows) == size == len(set(rows.tolist())) and rows.tolist() == sorted(
            rows.tolist()
        )
    assert chosen(view, budget(count=500)).tolist() == list(range(90))
    assert torch.equal(chosen(view, budget(count=12)), chosen(view.unlabelled(), budget(count=12)))
    assert not torch.equal(
        chosen(view, budget(count=12)), chosen(view, budget(count=12, seed=seed + 1))
    )
    shots = chosen(view, budget(shots=4))
    assert labels[shots].bincount().tolist() == [4, 4, 4]
    assert set(shots.tolist()) < set(chosen(view, budget(shots=8)).tolist()), (
        "more shots hold the fewer"
    )
    with pytest.raises(UserError, match=r"class \d has \d+ examples, 80 shots were asked for"):
        chosen(view, budget(shots=80))
    with pytest.raises(NotGrantedError):
        chosen(view.unlabelled(), budget(shots=1))
