"""Batches and data sets: every row once, in an order that a seed decides, within bounded memory."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader

import fastrec
from fastrec import CaptureSpec, Recorder, Recording
from fastrec._errors import OptionError, RaggedError
from fastrec.recording._rows import Rows
from fastrec.sinks import HDF5Sink, RAMSink

ROWS = 200


class Twin(nn.Module):
    """What comes out numbers the samples, and twice that."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x * 1, x * 2


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> list[Recording]:
    path = tmp_path_factory.mktemp("twin") / "run.h5"
    model = Twin()
    with Recorder(model, keep_op=True, sink=[RAMSink(), HDF5Sink(path)]) as rec:
        start = 0
        for size in [7, 1, 30, 2] * 5:
            model(torch.arange(start, start + size).float()[:, None].expand(size, 4))
            start += size
    return [rec.recording, fastrec.load(path)]


def numbers(batches: list[Any]) -> list[int]:
    return [int(row[0]) for batch in batches for row in batch]


@settings(max_examples=40)
@given(
    batch_size=st.integers(1, 250),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
    buffer_bytes=st.integers(1, 5000),
    ranks=st.integers(1, 3),
)
def test_batches_have_every_row_once(
    recordings: list[Recording], batch_size: int, shuffle: bool, drop_last: bool, buffer_bytes: int, ranks: int
) -> None:
    options = {"shuffle": shuffle, "drop_last": drop_last, "buffer_bytes": buffer_bytes, "seed": 3, "by": "sample"}
    for recording in recordings:
        seen: list[int] = []
        for rank in range(ranks):
            batches = list(recording.iter_batches("mul_1", batch_size, shard=(rank, ranks), **options))
            assert all(len(batch) == batch_size for batch in batches[: None if drop_last else -1])
            seen += numbers(batches)
        assert len(seen) == len(set(seen)) and set(seen) <= set(range(ROWS))
        if drop_last:
            assert ROWS - len(seen) < batch_size * ranks
        else:
            assert len(seen) == ROWS
        if ranks == 1 and not shuffle:
            assert seen == sorted(seen)


def test_ram_and_file_give_the_same_batches(recordings: list[Recording]) -> None:
    ram, file = (list(r.iter_batches("mul_1", 16, by="sample", shuffle=True, seed=1)) for r in recordings)
    assert all(torch.equal(a, b) for a, b in zip(ram, file, strict=True))


def test_a_seed_decides_the_order_of_each_epoch(recordings: list[Recording]) -> None:
    batches = recordings[1].iter_batches("mul_1", 16, by="sample", shuffle=True, seed=1)
    first, again = numbers(list(batches)), numbers(list(batches))
    batches.set_epoch(1)
    second = numbers(list(batches))
    assert first == again != second != sorted(second)


def test_without_a_seed_torch_decides(recordings: list[Recording]) -> None:
    batches = recordings[1].iter_batches("mul_1", 16, by="sample", shuffle=True)
    torch.manual_seed(5)
    first, second = numbers(list(batches)), numbers(list(batches))
    torch.manual_seed(5)
    assert numbers(list(batches)) == first != second


def test_rows_far_apart_are_mixed(tmp_path: Path) -> None:
    model = Twin()
    with Recorder(model, keep_op=True, sink=tmp_path / "run.h5") as rec:
        for i in range(2000):
            model(torch.full((4,), float(i)))
    del rec
    batches = fastrec.load(tmp_path / "run.h5").iter_batches("mul_1", 100, shuffle=True, seed=0, buffer_bytes=3200)
    spread = [int(batch[:, 0].max() - batch[:, 0].min()) for batch in batches]
    assert sum(spread) / len(spread) > 1500


def test_keys_stand_side_by_side(recordings: list[Recording]) -> None:
    for recording in recordings:
        for batch in recording.iter_batches(["mul_1", "mul_2"], 33, by="sample", shuffle=True, buffer_bytes=700):
            assert torch.equal(batch["mul_2"], 2 * batch["mul_1"])


def test_keys_that_do_not_stand_side_by_side_are_refused() -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    with Recorder(model, keep_module=["a", "b"]) as rec:
        for name in "aabb":
            model[name](torch.ones(1, 2))
        equal = rec.recording
        model["a"](torch.ones(1, 2))
    with pytest.raises(RaggedError, match="row 0 of 'a' is of pass 0 and that of 'b' of pass 2"):
        equal.iter_batches(["a", "b"], 2)
    with pytest.raises(RaggedError, match="'a' has 3 rows and 'b' has 2"):
        rec.recording.to_dataset(["a", "b"])


def test_what_is_read_at_a_time_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Twin()
    with Recorder(model, keep_op=True, sink=tmp_path / "run.h5") as rec:
        for i in range(3000):
            model(torch.full((8,), float(i)))
    del rec
    read: list[int] = []
    original = Rows.read
    monkeypatch.setattr(Rows, "read", lambda self, a, b: read.append((b - a) * 32) or original(self, a, b))
    bytes_in_memory = [0]
    for batch in fastrec.load(tmp_path / "run.h5").iter_batches("mul_1", 10, shuffle=True, buffer_bytes=6400):
        if read:
            bytes_in_memory.append(sum(read))
            read.clear()
        assert len(batch) == 10
    assert max(bytes_in_memory) <= 6400 and len(bytes_in_memory) > 10


def test_batches_may_be_written_into(recordings: list[Recording]) -> None:
    for recording in recordings:
        for batch in recording.iter_batches("mul_1", 10, by="sample"):
            batch.zero_()
        assert numbers(list(recording.iter_batches("mul_1", 10, by="sample"))) == list(range(ROWS))


def test_batches_of_attached_values_are_detached() -> None:
    model = nn.Linear(2, 2)
    with Recorder(model, keep_op=True, capture=CaptureSpec(keep_grad=True)) as rec:
        model(torch.ones(4, 2))
    assert not next(iter(rec.recording.iter_batches("linear_1", 1))).requires_grad
    assert not rec.recording.to_dataset("linear_1")[0].requires_grad


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0.: give a whole number from 1 up"),
        ({"buffer_bytes": 1.5}, "buffer_bytes=1.5.: give a whole number"),
        ({"seed": -1}, "seed=-1.: give a whole number from 0 up, or None"),
        ({"shard": 3}, "give two numbers"),
        ({"shard": (2, 2)}, "the rank goes from 0 to the world size less 1"),
        ({"shard": (0, 2), "shuffle": True}, "give a seed, the same in all ranks"),
        ({"shufle": True}, "the options are by, shuffle, seed"),
    ],
)
def test_options_that_do_not_fit_are_errors(recordings: list[Recording], options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        recordings[0].iter_batches("mul_1", **{"batch_size": 2, "by": "sample", **options})


def test_workers_share_the_rows(recordings: list[Recording]) -> None:
    file = recordings[1]
    batches = file.iter_batches(["mul_1", "mul_2"], 16, by="sample", shuffle=True, buffer_bytes=600)
    loader = DataLoader(batches, batch_size=None, num_workers=2, multiprocessing_context="fork")
    epochs = [list(loader) for _ in range(2)]
    for epoch in epochs:
        assert sorted(numbers([batch["mul_1"] for batch in epoch])) == list(range(ROWS))
        assert all(torch.equal(batch["mul_2"], 2 * batch["mul_1"]) for batch in epoch)
    assert len({tuple(numbers([batch["mul_1"] for batch in epoch])) for epoch in epochs}) == 2


def test_a_data_set_gives_rows_to_samplers(recordings: list[Recording]) -> None:
    for recording in recordings:
        dataset = recording.to_dataset(["mul_1", "mul_2"], by="sample")
        assert len(dataset) == ROWS and dataset[3]["mul_2"].tolist() == [6.0] * 4
        with pytest.raises(IndexError):
            dataset[ROWS]
        loader = DataLoader(dataset, batch_size=16, shuffle=True, num_workers=2, multiprocessing_context="fork")
        seen = [batch["mul_1"] for batch in loader]
        assert sorted(numbers(seen)) == list(range(ROWS)) and len(seen) == 13
        assert recording.to_dataset("mul_1", by="sample")[-1].tolist() == [ROWS - 1.0] * 4
