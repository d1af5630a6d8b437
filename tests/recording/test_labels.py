"""What stands beside rows: steps, environments, episodes, sample ids, and step columns in batches."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import fastrec
from fastrec import Recorder, Recording, load
from fastrec._errors import OptionError, RecordKeyError, StepError
from fastrec.files import merge
from fastrec.sinks import RAMSink

MODEL = nn.Sequential(nn.Linear(4, 3), nn.Tanh())


@pytest.fixture(params=["ram", "file"])
def rollout(request: Any, tmp_path: Path) -> Recording:
    """Six steps of three environments, whose inputs are 10 * step + env; env 1 ends in step 3."""
    sink = [RAMSink(), str(tmp_path / "a.h5")]
    with torch.no_grad(), Recorder(MODEL, keep_op="tanh", keep_module="0", sink=sink, autoreset="same_step") as rec:
        for t in range(6):
            MODEL((10.0 * t + torch.arange(3.0))[:, None].expand(3, 4))
            rec.step(
                reward=np.arange(3) + 10.0 * t,
                terminated=np.array([False, t == 3, False]),
                truncated=np.zeros(3, bool),
                goal=np.arange(6).reshape(3, 2) + 100 * t,
                t=t,
            )
        if request.param == "ram":
            return rec.recording
    return fastrec.load(tmp_path / "a.h5")


def values_of(inputs: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        values: torch.Tensor = MODEL(inputs[:, None].expand(-1, 4).float())
    return values


def test_rows_tell_what_they_belong_to(rollout: Recording) -> None:
    rows = rollout.rows("1/tanh", by="sample")
    assert rows.step.tolist() == [t for t in range(6) for _ in range(3)]
    assert rows.env.tolist() == [0, 1, 2] * 6
    episodes = rollout.episodes()
    for row, (step, env, number) in enumerate(zip(rows.step, rows.env, rows.episode, strict=True)):
        episode = episodes[number]
        assert episode.env == env and episode.start_step <= step < episode.stop_step, row
    assert rows.column("reward").tolist() == [10.0 * t + e for t in range(6) for e in range(3)]
    assert rows.column("goal").shape == (18, 2) and rows.column("goal")[4].tolist() == [102, 103]
    assert rows.column("t").tolist() == rows.step.tolist()
    whole = rollout.rows("1/tanh")
    assert whole.step.tolist() == list(range(6)) and whole.env.tolist() == [-1] * 6
    assert whole.column("reward").shape == (6, 3)


@pytest.mark.parametrize(
    "options", [{}, {"shuffle": True, "seed": 1}, {"shuffle": True, "seed": 2, "buffer_bytes": 64}]
)
def test_labels_come_with_the_batches(rollout: Recording, options: dict[str, Any]) -> None:
    keys = ["1/tanh", "reward", "goal", "step", "env", "episode", "row", "pass_index", "sample_id"]
    rows = []
    for batch in rollout.iter_batches(keys, 5, by="sample", **options):
        assert list(batch) == keys
        torch.testing.assert_close(batch["1/tanh"], values_of(batch["reward"]))
        assert torch.equal(batch["reward"], 10.0 * batch["step"] + batch["env"])
        assert torch.equal(batch["goal"][:, 0], 100 * batch["step"] + 2 * batch["env"])
        assert torch.equal(batch["row"], 3 * batch["pass_index"] + batch["env"])
        assert batch["sample_id"] == [None] * len(batch["row"])
        rows += batch["row"].tolist()
    assert sorted(rows) == list(range(18)) and (rows != sorted(rows)) == bool(options)


def test_data_sets_and_loaders_have_labels(rollout: Recording) -> None:
    dataset = rollout.to_dataset(["1/tanh", "reward"], by="sample")
    assert torch.equal(dataset[7]["reward"], torch.tensor(21.0, dtype=torch.float64))
    for batch in DataLoader(dataset, batch_size=4, shuffle=True):
        torch.testing.assert_close(batch["1/tanh"], values_of(batch["reward"]))
    for batch in DataLoader(rollout.iter_batches(["1/tanh", "reward"], 4, by="sample"), batch_size=None):
        torch.testing.assert_close(batch["1/tanh"], values_of(batch["reward"]))


def test_sample_ids_come_along_and_select() -> None:
    with torch.no_grad(), Recorder(MODEL, keep_op="tanh") as rec:
        for n, name in enumerate("abc"):
            rec.log(torch.full((2, 4), float(n)), sample_id=name)
    batches = list(rec.recording.iter_batches(["1/tanh", "sample_id"], 4, by="sample", shuffle=True, seed=0))
    for batch in batches:
        inputs = torch.tensor(["abc".index(name) for name in batch["sample_id"]])
        torch.testing.assert_close(batch["1/tanh"], values_of(inputs))
    assert sorted(name for batch in batches for name in batch["sample_id"]) == list("aabbcc")


def test_rows_without_a_step_are_nan_or_refused() -> None:
    with torch.no_grad(), Recorder(MODEL, keep_op="tanh") as rec:
        for n in range(3):
            MODEL(torch.ones(2, 4))
            if n < 2:
                rec.step(score=[1.0, 2.0], label=[1, 2])
    rows = rec.recording.rows("1/tanh", by="sample")
    assert rows.step.tolist() == [0, 0, 1, 1, 2, 2]  # the last pass belongs to a step that is open
    assert np.array_equal(rows.column("score"), [1, 2, 1, 2, np.nan, np.nan], equal_nan=True)
    with pytest.raises(StepError, match=r"2 of 6 rows have no 'label', .* recording.select\(steps=...\)"):
        rec.recording.iter_batches(["1/tanh", "label"], 2, by="sample")
    part = rec.recording.select(steps=range(2))
    assert [batch["label"].tolist() for batch in part.iter_batches(["1/tanh", "label"], 4, by="sample")] == [
        [1, 2, 1, 2]
    ]


def test_labels_that_can_not_stand_beside_rows_are_refused(rollout: Recording) -> None:
    with pytest.raises(RecordKeyError, match="'reward' stand beside the rows of a key; give one too"):
        rollout.iter_batches(["reward"], 2)
    with Recorder(MODEL, keep_op="tanh") as rec:
        MODEL(torch.ones(3, 4))
        rec.step(label=[1, 2])
    with pytest.raises(StepError, match=r"'label' has 2 values in each step, and a value of step 0 has 3 samples"):
        rec.recording.iter_batches(["1/tanh", "label"], 2, by="sample")


def test_a_sample_id_is_a_key_of_its_records() -> None:
    with torch.no_grad(), Recorder(MODEL, keep_op="tanh", keep_module="0") as rec:
        for n, name in enumerate("abca"):
            rec.log(torch.full((2, 4), float(n)), sample_id=name)
    assert [record.ctx.pass_index for record in rec.recording["a"]] == [0, 0, 3, 3]
    with pytest.raises(RecordKeyError, match="there is nothing under 'd'"):
        rec.recording["d"]


def test_a_selection_by_batch_size_has_the_steps_of_its_values() -> None:
    with torch.no_grad(), Recorder(MODEL, keep_op="tanh") as rec:
        for t in range(12):
            MODEL(torch.full((2 if t % 3 else 3, 4), float(t)))
            rec.step(t=t)
    part = rec.recording.select(batch=2)
    assert part.steps["t"].tolist() == part.rows("1/tanh").column("t").tolist() == [t for t in range(12) if t % 3]
    assert torch.equal(part.stack("1/tanh", by="step"), part.stack("1/tanh"))


def test_each_sample_of_a_batch_has_its_id(tmp_path: Path) -> None:
    with torch.no_grad(), Recorder(MODEL, keep_op="tanh", sink=[RAMSink(), tmp_path / "run.h5"]) as rec:
        for names in (["a", "b", 3], ["c", 4]):
            rec.log(torch.randn(len(names), 4), sample_id=names)
    for recording in (rec.recording, load(tmp_path / "run.h5")):
        assert recording.rows("1/tanh", by="sample").sample_id == ["a", "b", 3, "c", 4]
        assert recording.select(passes=0).rows("1/tanh").sample_id == [("a", "b", 3)]
        assert [record.ctx.pass_index for record in recording["c"]] == [1]
        batches = list(recording.iter_batches(["1/tanh", "sample_id"], 2, by="sample"))
        assert [batch["sample_id"] for batch in batches] == [["a", "b"], [3, "c"], [4]]
    merge([tmp_path / "run.h5"], tmp_path / "whole.h5")
    assert load(tmp_path / "whole.h5")[0].ctx.sample_id == ("a", "b", 3)


def test_sample_ids_that_do_not_fit_are_refused() -> None:
    with torch.no_grad(), Recorder(MODEL, keep_op="tanh") as rec:
        rec.log(torch.randn(3, 4), sample_id=torch.tensor([1, 2]))
        for wrong in (1.5, [], [None], True):
            with pytest.raises(OptionError, match="give a string, a whole number, or a list with one per sample"):
                rec.log(torch.randn(3, 4), sample_id=wrong)  # type: ignore[arg-type]
    with pytest.raises(StepError, match="pass 0 has 2 sample ids, and a value of it has 3 rows"):
        print(rec.recording.rows("1/tanh", by="sample").sample_id)
    assert rec.recording.rows("1/tanh").sample_id == [(1, 2)]
