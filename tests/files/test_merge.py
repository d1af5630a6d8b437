"""Merged recordings keep ranks and order, copied or shown."""

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import fastrec
from fastrec import Recorder, load
from fastrec.files import describe, merge, repack, verify
from fastrec.sinks import HDF5Sink
from tests.files.same import assert_same

ROOT = str(Path(__file__).parents[2])

BOTH = pytest.mark.parametrize("virtual", [False, True], ids=["copied", "virtual"])


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def record(path: str, rank: int | None, steps: int = 5, **options: object) -> fastrec.Recording:
    """A rollout of two environments, and an evaluation."""
    torch.manual_seed(rank or 0)
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh())
    autoreset = options.pop("autoreset", "same_step")
    with pytest.MonkeyPatch.context() as patch:
        if rank is not None:
            patch.setenv("RANK", str(rank))
        sink = HDF5Sink(path, **options)
        with Recorder(model, keep_op="tanh", keep_module="0", sink=sink, autoreset=autoreset) as rec:
            with rec.phase("rollout"):
                for step in range(steps):
                    model(torch.randn(2, 2))
                    rec.step(reward=[step, step + 1], terminated=[step % 3 == 2, False], truncated=[False, False])
            with rec.phase("eval"):
                rec.log(torch.randn(1, 2), sample_id=f"rank {rank}")
    return load(path)


@BOTH
def test_each_rank_is_what_it_was(virtual: bool) -> None:
    wanted = {rank: record(f"run.{rank}.h5", rank, steps=5 + rank) for rank in (0, 1, 2)}
    merged = merge([f"run.{rank}.h5" for rank in (0, 1, 2)], "run.h5", virtual=virtual)
    whole = load("run.h5")
    assert merged.ranks == list(whole.ranks) == [0, 1, 2]
    assert (
        (merged.records, merged.passes, merged.steps) == (len(whole), whole.n_passes, len(whole.steps)) == (42, 21, 18)
    )
    first = 0
    for rank, recording in whole.ranks.items():
        assert_same(recording, wanted[rank], first_pass=first)
        episodes, wanted_episodes = recording.episodes(), wanted[rank].episodes()
        assert [(e.env, e.start_step, e.length) for e in episodes] == [
            (e.env, e.start_step, e.length) for e in wanted_episodes
        ]
        assert all(torch.equal(a["tanh_1"], b["tanh_1"]) for a, b in zip(episodes, wanted_episodes, strict=True))
        first += wanted[rank].n_passes


@BOTH
def test_the_order_is_that_of_ranks_passes_and_events(virtual: bool) -> None:
    wanted = {rank: record(f"run.{rank}.h5", rank) for rank in (0, 1, 10)}
    merge([f"run.{rank}.h5" for rank in (10, 0, 1)], "run.h5", virtual=virtual)
    whole = load("run.h5")
    assert list(whole.ranks) == [0, 1, 10]
    for key in ("0", "1/tanh"):
        values = [record.activation for rank in (0, 1, 10) for record in wanted[rank][key]]
        merged_values = [record.activation for record in whole[key]]
        assert all(map(torch.equal, merged_values, values))
    indices = [record.ctx.pass_index for record in whole]
    assert indices == sorted(indices)
    assert whole.select(phase="rollout").stack("0").shape == (15, 2, 3)
    assert whole.steps.step.tolist() == [0, 1, 2, 3, 4] * 3
    assert len(whole.episodes()) == 3 * len(wanted[0].episodes())
    assert whole.select(phase="rollout", steps=slice(0, 2)).stack("0").shape == (6, 2, 3)


@BOTH
def test_recordings_without_a_rank_come_as_they_are_given(virtual: bool) -> None:
    second, first = record("b.h5", None, steps=3), record("a.h5", None, steps=2)
    assert merge(["b.h5", "a.h5"], "both.h5", virtual=virtual).ranks == [0, 1]
    whole = load("both.h5")
    assert_same(whole.ranks[0], second)
    assert_same(whole.ranks[1], first, first_pass=second.n_passes)


@BOTH
def test_merged_recordings_can_be_verified_described_and_repacked(virtual: bool) -> None:
    for rank in (0, 1):
        record(f"run.{rank}.h5", rank)
    merge(["run.0.h5", "run.1.h5"], "run.h5", virtual=virtual)
    verified = verify("run.h5")
    assert (verified.damage, verified.unchecked, verified.files) == ([], 0, 2 if virtual else 1)
    description = describe("run.h5")
    assert (description.ranks, description.rank, description.records, description.phases) == (
        [0, 1],
        None,
        24,
        {"rollout": 10, "eval": 2},
    )
    repack("run.h5", "one.h5", compression="gzip")
    whole = load("run.h5")
    assert_same(load("one.h5"), whole)
    assert list(load("one.h5").ranks) == [0, 1]


@BOTH
def test_a_rank_of_several_files_is_merged(virtual: bool) -> None:
    wanted = record("run.0.h5", 0, steps=9000, segment_bytes=1 << 20, block_bytes=1 << 12)
    assert Path("run.0.00001.h5").exists()
    record("run.1.h5", 1)
    merge(["run.0.h5", "run.1.h5"], "run.h5", virtual=virtual)
    whole = load("run.h5")
    assert torch.equal(whole.ranks[0].select(phase="rollout").stack("0"), wanted.select(phase="rollout").stack("0"))
    assert verify("run.h5").damage == []


def test_other_tools_see_what_is_shown() -> None:
    os.makedirs("ranks")
    wanted = [record(f"ranks/run.{rank}.h5", rank) for rank in (0, 1)]
    merge(["ranks/run.0.h5", "ranks/run.1.h5"], "run.h5", virtual=True)
    values = np.concatenate([recording.select(phase="rollout").stack("0").numpy() for recording in wanted])
    with h5py.File("run.h5") as file:
        shown = next(data[:] for data in file["data"].values() if data.attrs["of"] == "0" and data.shape[1] == 2)
    assert np.array_equal(shown, values)


FEW = """
import resource, sys, h5py, numpy as np
from fastrec.files import merge
_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), most))
merge([f"run.{rank}.h5" for rank in range(40)], sys.argv[2] + ".h5", virtual=sys.argv[2] == "shown")
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # as the warning advises
with h5py.File(sys.argv[2] + ".h5") as file:
    print(sum(np.isnan(data[:]).sum() for data in file["data"].values()))
"""


@pytest.mark.parametrize(("limit", "virtual", "warns"), [(64, True, True), (80, True, False), (64, False, False)])
def test_more_files_than_other_tools_may_open_are_told(limit: int, virtual: bool, warns: bool) -> None:
    for rank in range(40):
        record(f"run.{rank}.h5", rank, 1)
    command = [sys.executable, "-c", FEW, str(limit), "shown" if virtual else "copied"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": ROOT})
    told = "shows 40 files; .*this process may have 64 open files.*ulimit -n.*virtual=False"
    assert bool(re.search(told, done.stderr)) == warns
    assert done.stdout.strip() == "0"


def test_what_is_shown_can_be_moved_together() -> None:
    os.makedirs("here/ranks")
    for rank in (0, 1):
        record(f"here/ranks/run.{rank}.h5", rank)
    merge(["here/ranks/run.0.h5", "here/ranks/run.1.h5"], "here/run.h5", virtual=True)
    os.rename("here", "there")
    assert len(load("there/run.h5")) == 24


def test_a_missing_source_is_an_error_and_no_value() -> None:
    for rank in (0, 1):
        record(f"run.{rank}.h5", rank)
    merge(["run.0.h5", "run.1.h5"], "run.h5", virtual=True)
    os.unlink("run.1.h5")
    for reading in (load, verify, describe):
        with pytest.raises(FileNotFoundError, match="'run.1.h5'"):
            reading("run.h5")


def test_another_recording_in_the_place_of_a_source_is_an_error() -> None:
    for rank in (0, 1):
        record(f"run.{rank}.h5", rank)
    merge(["run.0.h5", "run.1.h5"], "run.h5", virtual=True)
    record("run.1.h5", 1, overwrite=True)
    with pytest.raises(fastrec.FastrecError, match="shows 'run.1.h5', and another recording took its place"):
        load("run.h5")


def test_what_can_not_be_merged() -> None:
    record("run.0.h5", 0)
    record("run.1.h5", 1, autoreset="next_step")
    with pytest.raises(fastrec.FastrecError, match="none was given"):
        merge([], "run.h5")
    with pytest.raises(FileNotFoundError, match="there is no recording at 'run.7.h5'"):
        merge(["run.0.h5", "run.7.h5"], "run.h5")
    with pytest.raises(fastrec.FastrecError, match="'run.0.h5' and 'run.0.h5' are the same recording"):
        merge(["run.0.h5", "run.0.h5"], "run.h5")
    with pytest.raises(fastrec.FastrecError, match="autoreset='next_step' and 'run.0.h5' with 'same_step'"):
        merge(["run.0.h5", "run.1.h5"], "run.h5")
    with pytest.raises(FileExistsError, match="'run.1.h5' exists"):
        merge(["run.0.h5"], "run.1.h5")
    merge(["run.0.h5"], "alone.h5")
    with pytest.raises(fastrec.FastrecError, match="'alone.h5' was merged already"):
        merge(["alone.h5"], "run.h5")
    assert not Path("run.h5").exists()


def test_a_source_that_is_still_written_is_an_error() -> None:
    model = torch.nn.Linear(2, 2)
    with Recorder(model, keep_op="linear", sink="run.0.h5") as rec:
        model(torch.ones(1, 2))
        rec.flush()
        with pytest.raises(OSError, match=r"'run.0.00000.h5.tmp' is not finished; let its process end, or recover"):
            merge(["run.0.h5"], "run.h5")


def test_contexts_halts_and_failures_keep_their_passes() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())

    def fails(ctx: fastrec.RecordContext) -> bool:
        if ctx.pass_index == 1:
            raise ValueError("no")
        return True

    for rank in (0, 1):
        options = {"keep_op": fails, "on_predicate_error": "collect", "halt": fastrec.predicates.op("linear")}
        with pytest.warns(fastrec.FastrecWarning), Recorder(model, sink=f"run.{rank}.h5", **options) as rec:
            for _ in range(3):
                rec.log(torch.ones(1, 2))
    merge(["run.0.h5", "run.1.h5"], "run.h5")
    whole, part = load("run.h5"), load("run.0.h5")
    assert len(whole.predicate_failures) == 2 * len(part.predicate_failures) > 0
    assert sorted(whole.halted) == [*part.halted, *(index + 3 for index in part.halted)]


@BOTH
def test_merged_recordings_can_be_pickled(virtual: bool) -> None:
    for rank in (0, 1):
        record(f"run.{rank}.h5", rank, steps=60)
    merge(["run.0.h5", "run.1.h5"], "run.h5", virtual=virtual)
    whole = load("run.h5")
    part = whole.ranks[1].select(phase="rollout")
    assert len(pickle.dumps(whole)) < 5000
    copied, copied_part = pickle.loads(pickle.dumps(whole)), pickle.loads(pickle.dumps(part))
    assert_same(copied, whole)
    assert list(copied.ranks) == [0, 1]
    assert torch.equal(copied_part.stack("tanh_1"), part.stack("tanh_1"))
    assert copied_part.steps["reward"].tolist() == part.steps["reward"].tolist()
    assert len(copied.episodes()) == len(whole.episodes()) > 20
    rows = pickle.loads(pickle.dumps(whole.rows("tanh_1", by="sample")))
    assert torch.equal(rows[:], whole.rows("tanh_1", by="sample")[:])


@pytest.mark.parametrize(("virtual", "method"), [(False, "fork"), (True, "fork"), (True, "spawn")])
def test_workers_read_merged_recordings(virtual: bool, method: str) -> None:
    for rank in (0, 1):
        record(f"run.{rank}.h5", rank)
    merge(["run.0.h5", "run.1.h5"], "run.h5", virtual=virtual)
    whole = load("run.h5")
    expected = whole.rows("tanh_1", by="sample")[:]
    batches = whole.iter_batches("tanh_1", 4, by="sample", shuffle=True, seed=0)
    # An interpreter that starts anew takes seconds to import torch, so there is only one.
    for data in [batches] if method == "spawn" else [batches, whole.to_dataset("tanh_1", by="sample")]:
        size = 4 if data is not batches else None
        loader = DataLoader(data, batch_size=size, num_workers=1, multiprocessing_context=method)
        loaded = torch.cat(list(loader))
        assert sorted(loaded.tolist()) == sorted(expected.tolist())
    assert torch.equal(whole.rows("tanh_1", by="sample")[:], expected)  # the handles of this process are its own
