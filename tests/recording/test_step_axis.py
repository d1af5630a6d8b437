"""Steps of several processes: side by side where they are the same, and told where they are not."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fastrec
from fastrec import Recorder, Recording
from fastrec._errors import OptionError, RaggedError, StepError
from fastrec.sinks import HDF5Sink

MODEL = torch.nn.Identity()

Write = Callable[..., None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Record as one process of several: a value per step, which counts up from the one given."""

    def write(
        rank: int | None, value: float, steps: int = 3, *, like: Any = None, skip: Any = (), **options: Any
    ) -> None:
        monkeypatch.delenv("RANK", raising=False)
        if rank is not None:
            monkeypatch.setenv("RANK", str(rank))
        like = torch.zeros(2) if like is None else like
        with Recorder(MODEL, keep_module=True, sink=HDF5Sink(f"{tmp_path}/run/", **options)) as rec:
            for i in range(steps):
                if i not in skip:
                    MODEL(torch.full_like(like, value + i))
                rec.step(reward=float(i))

    return write


def load(tmp_path: Path) -> Recording:
    return fastrec.load(tmp_path / "run")


def test_ranks_are_an_axis_where_they_marked_the_same_steps(write: Write, tmp_path: Path) -> None:
    for rank in (2, 0, 1):
        write(rank, 10.0 * rank)
    recording = load(tmp_path)
    values = recording.stack(":out", by="step")
    assert values.shape == (3, 3, 2)
    assert values[..., 0].tolist() == [[0, 10, 20], [1, 11, 21], [2, 12, 22]]
    for rank, part in recording.ranks.items():
        assert torch.equal(part.stack(":out", by="step"), values[:, rank])
    assert torch.equal(recording.select(rank=[0, 2], steps=slice(1, 3)).stack(":out", by="step"), values[1:, [0, 2]])
    assert recording.stack([":out"], by="step")[":out"].shape == (3, 3, 2)
    assert np.array_equal(recording.to_numpy(":out", by="step"), values)


def test_steps_that_one_lacks_are_told_and_filled(write: Write, tmp_path: Path) -> None:
    write(0, 0.0, steps=4)
    write(1, 10.0, steps=2)
    recording = load(tmp_path)
    with pytest.raises(StepError, match=r"rank 1 has no step 2; give fill=.*select\(steps=range\(2\)\).*by='step'\)"):
        recording.stack(":out", by="step")
    filled = recording.stack(":out", by="step", fill=math.nan)[..., 0]
    assert filled[:2].tolist() == [[0, 10], [1, 11]]
    assert filled[2:, 0].tolist() == [2, 3] and filled[2:, 1].isnan().all()
    assert recording.select(steps=range(2)).stack(":out", by="step").shape == (2, 2, 2)
    rows = recording.to_xarray(":out", by="step")
    assert rows["rank"].values.tolist() == [0, 0, 0, 0, 1, 1] and rows["step"].values.tolist() == [0, 1, 2, 3, 0, 1]


def test_a_step_without_a_value_names_its_rank(write: Write, tmp_path: Path) -> None:
    write(0, 0.0)
    write(1, 10.0, skip=[1])
    with pytest.raises(StepError, match="fired 0 times in step 1 of rank 1"):
        load(tmp_path).stack(":out", by="step")
    assert load(tmp_path).stack(":out", by="step", fill=-1)[1, :, 0].tolist() == [1, -1]


def test_a_number_that_no_value_can_be_is_refused(write: Write, tmp_path: Path) -> None:
    write(0, 0.0, like=torch.zeros(2, dtype=torch.long))
    write(1, 0.0, 2, like=torch.zeros(2, dtype=torch.long))
    with pytest.raises(StepError, match=r"fill=nan can't stand among values of torch.int64; give a whole number"):
        load(tmp_path).stack(":out", by="step", fill=math.nan)
    assert load(tmp_path).stack(":out", by="step", fill=-1)[2, :, 0].tolist() == [2, -1]


def test_values_of_other_shapes_are_no_axis(write: Write, tmp_path: Path) -> None:
    write(0, 0.0)
    write(1, 0.0, like=torch.zeros(4))
    with pytest.raises(RaggedError, match=r"other shapes or dtypes in other processes.*select\(rank=...\)"):
        load(tmp_path).stack(":out", by="step")
    assert load(tmp_path).select(rank=1).stack(":out", by="step").shape == (3, 4)


def test_processes_without_a_rank_have_a_place_each(write: Write, tmp_path: Path) -> None:
    write(None, 0.0, role="rollout")
    write(None, 10.0, role="eval")
    recording = load(tmp_path)
    assert [process.role for process in recording.processes] == ["eval", "rollout"]
    assert recording.stack(":out", by="step")[0, :, 0].tolist() == [10, 0]
    assert recording.select(role="eval").stack(":out", by="step").shape == (3, 2)


def test_attempts_of_a_rank_that_marked_the_same_steps_are_no_axis(write: Write, tmp_path: Path) -> None:
    write(0, 0.0)
    write(0, 5.0)
    write(1, 10.0)
    recording = load(tmp_path)
    with pytest.raises(StepError, match="rank 0 was recorded 2 times, and step 0 was marked more than once"):
        recording.stack(":out", by="step")
    assert recording.to_xarray(":out", by="step").sizes["step"] == 9
    files = sorted((tmp_path / "run").glob("*.0.*.h5"), key=lambda path: path.stat().st_mtime)
    together = fastrec.load([files[1], tmp_path / "run" / "main.1.*"])
    assert together.stack(":out", by="step")[0, :, 0].tolist() == [5, 10]


def test_a_phase_of_each_process_is_joined_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        with Recorder(MODEL, keep_module=True, sink=f"{tmp_path}/run/") as rec:
            for name in ("train", "eval"):
                with rec.phase(name):
                    MODEL(torch.full((2,), float(rank)))
                    rec.step()
    recording = load(tmp_path)
    with pytest.raises(StepError, match=r"several phases: 'train', 'eval'; select\(phase=...\)"):
        recording.stack(":out", by="step")
    assert recording.select(phase="eval").stack(":out", by="step")[0, :, 0].tolist() == [0, 1]
    assert recording.phases == ["train", "eval"]


def test_ranks_stand_beside_everything(write: Write, tmp_path: Path) -> None:
    write(0, 0.0, 2)
    write(1, 10.0, 1)
    recording = load(tmp_path)
    assert [record.ctx.rank for record in recording] == [0, 0, 1]
    assert recording.steps.rank is not None and recording.steps.rank.tolist() == [0, 0, 1]
    assert recording.select(rank=1).steps.rank.tolist() == [1]  # type: ignore[union-attr]
    assert recording.rows(":out").rank.tolist() == [0, 0, 1]
    (batch,) = recording.iter_batches([":out", "rank"], 10)
    assert batch["rank"].tolist() == [0, 0, 1]


def test_one_process_has_no_rank(tmp_path: Path) -> None:
    with Recorder(MODEL, keep_module=True, sink=tmp_path / "run.h5") as rec:
        MODEL(torch.zeros(2))
        rec.step()
    recording = fastrec.load(tmp_path / "run.h5")
    assert recording[0].ctx.rank is None and recording.steps.rank is None
    assert recording.rows(":out").rank.tolist() == [-1]
    with pytest.raises(OptionError, match="say what stands in the row of a step"):
        recording.stack(":out", fill=0)


def test_episodes_are_of_one_process_and_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        with Recorder(
            MODEL, keep_module=True, sink=HDF5Sink(f"{tmp_path}/run/", role="rollout"), autoreset="same_step"
        ) as rec:
            for i in range(4):
                MODEL(torch.tensor([[10.0 * rank + i], [100.0 + 10 * rank + i]]))
                rec.step(reward=[1.0, 1.0], terminated=[i % 2 == 1, False], truncated=[False, False])
    episodes = load(tmp_path).episodes()
    places = [(each.process.rank, each.process.role, each.env, each[":out"][:, 0].tolist()) for each in episodes]  # type: ignore[union-attr]
    assert places == [
        (rank, "rollout", env, [value + 10 * rank for value in values])
        for rank in range(2)
        for env, values in ((0, [0, 1]), (1, [100, 101, 102, 103]), (0, [2, 3]))
    ]
    with Recorder(MODEL, keep_module=True) as rec:
        MODEL(torch.zeros(1))
        rec.step(terminated=True, truncated=False)
    (episode,) = rec.recording.episodes()
    assert episode.process is None and episode.rank is None
