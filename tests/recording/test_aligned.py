"""Values side by side in the containers of other libraries, from RAM as from files."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fastrec
from fastrec import Recorder, Recording
from fastrec._errors import OptionError, RaggedError, RecordKeyError, StepError
from fastrec.sinks import HDF5Sink, RAMSink

xarray = pytest.importorskip("xarray")
STEPS, ENVS = 5, 2


@pytest.fixture(params=["ram", "file"])
def recording(request: pytest.FixtureRequest, tmp_path: Path) -> Recording:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
    with Recorder(model, keep_op=True, sink=[RAMSink(), HDF5Sink(tmp_path / "run.h5")]) as rec:
        for i in range(STEPS):
            model(torch.randn(ENVS, 3))
            rec.step(reward=[float(i), 0.0], count=i)
    return rec.recording if request.param == "ram" else fastrec.load(tmp_path / "run.h5")


def test_xarray_has_a_variable_per_site_and_record(recording: Recording) -> None:
    data = recording.to_xarray()
    assert list(data) == ["0/linear", "1/tanh"] and data["1/tanh"].dims == ("record", "1/tanh_1", "1/tanh_2")
    assert np.array_equal(data["1/tanh"], recording.to_numpy("tanh_1"))
    assert data["pass_index"].values.tolist() == data["step"].values.tolist() == list(range(STEPS))
    assert set(data["phase"].values.tolist()) == {""}


def test_xarray_by_step_has_environments_and_columns(recording: Recording) -> None:
    data = recording.to_xarray("tanh_1", by="step")
    assert data["tanh_1"].dims == ("step", "env", "tanh_1_2") and data["reward"].dims == ("step", "env")
    assert data["count"].dims == ("step",)
    assert data.sel(step=3)["reward"].values.tolist() == [3.0, 0.0]
    assert np.array_equal(data["tanh_1"], recording.to_numpy("tanh_1"))


def test_tensordicts_have_one_batch(recording: Recording) -> None:
    by_record = recording.to_tensordict(["linear_1", "tanh_1"])
    assert by_record.batch_size == (STEPS,) and torch.equal(by_record["tanh_1"], recording.stack("tanh_1"))
    by_step = recording.to_tensordict("tanh_1", by="step")
    assert by_step.batch_size == (STEPS,) and by_step["reward"].shape == (STEPS, ENVS)
    assert by_step["count"].tolist() == list(range(STEPS))


def test_a_batch_has_environments_where_all_values_do() -> None:
    model = nn.Linear(3, 4)
    with Recorder(model, keep_op=True) as rec:
        for i in range(STEPS):
            model(torch.randn(ENVS, 3))
            rec.step(reward=[float(i), 0.0])
    data = rec.recording.to_tensordict(by="step")
    assert data.batch_size == (STEPS, ENVS) and data[2, 1]["reward"].item() == 0.0


def test_steps_without_a_column_are_missing_numbers() -> None:
    model = nn.Linear(3, 4)
    with Recorder(model, keep_op=True) as rec:
        for i in range(3):
            model(torch.randn(ENVS, 3))
            rec.step(**({"late": 2.0} if i == 2 else {}))
    assert np.isnan(rec.recording.to_xarray(by="step")["late"].values).tolist() == [True, True, False]


def test_what_does_not_stand_side_by_side_is_an_error() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    with Recorder(model, keep_op=True) as rec:
        model(torch.randn(ENVS, 3))
        with pytest.raises(StepError, match="by='step' needs marked steps, and there are none"):
            rec.recording.to_xarray(by="step")
        rec.step()
        model(torch.randn(ENVS, 3))
        model[0](torch.randn(ENVS, 3))
        rec.step()
        with rec.phase("eval"):
            model(torch.randn(ENVS, 3))
            rec.step()
    recording = rec.recording
    with pytest.raises(RaggedError, match="don't stand side by side"):
        recording.to_xarray()
    with pytest.raises(StepError, match="steps in several phases: '', 'eval'; select"):
        recording.to_tensordict(by="step")
    with pytest.raises(StepError, match="'0/linear' fired 2 times in step 1, and one firing per step is needed"):
        recording.select(phase="").to_xarray(by="step")
    with pytest.raises(OptionError, match="give by='step', or leave it out"):
        recording.to_xarray(by="pass")
    with pytest.raises(RecordKeyError, match="there is nothing to read"):
        recording.to_tensordict([])


def test_extras_that_are_missing_are_named(recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("xarray", "tensordict"):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(fastrec.FastrecError, match=rf"to_{name}\(\) needs {name}.*pip install '.*\[{name}\]'"):
            getattr(recording, f"to_{name}")()
