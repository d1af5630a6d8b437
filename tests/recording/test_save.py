"""``recording.save``: a file that loads as the same recording, of all of it or of a part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fastrec
from fastrec import CaptureSpec, Recorder, Recording
from fastrec._errors import FastrecWarning, RecordingExistsError, StepError
from fastrec.files import merge, verify
from fastrec.predicates import op


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))


def run(passes: int = 12, **options: Any) -> Recording:
    net = model()
    with (
        torch.no_grad(),
        Recorder(net, keep_op="tanh", keep_module="2", **{"autoreset": "same_step", **options}) as rec,
    ):
        for i in range(passes):
            with rec.phase("eval" if i % 6 == 5 else "rollout"):
                rec.log(torch.full((1 + i % 3, 4), float(i)), sample_id=f"sample {i}" if i % 2 else None)
                ends = np.array([i % 4 == 3, False])
                rec.step(reward=np.full(2, float(i)), terminated=ends, truncated=np.zeros(2, bool))
    return rec.recording


def assert_same(saved: Recording, recording: Recording) -> None:
    assert saved.n_passes == recording.n_passes and list(saved.sites) == list(recording.sites)
    for a, b in zip(saved, recording, strict=True):
        assert torch.equal(a.activation, b.activation) and a.activation.dtype == b.activation.dtype
        for field in ("label", "site", "pass_index", "entry_pass", "phase", "step", "sample_id", "tensor_shape"):
            assert getattr(a.ctx, field) == getattr(b.ctx, field), field
    assert list(saved.steps) == list(recording.steps)
    for name in recording.steps:
        np.testing.assert_array_equal(saved.steps[name], recording.steps[name])
    np.testing.assert_array_equal(saved.steps.step, recording.steps.step)
    for phase in set(recording.phases):
        assert episodes(saved, phase) == episodes(recording, phase)


def episodes(recording: Recording, phase: str) -> list[tuple[int, int, int]] | str:
    try:
        return [(e.env, e.start_step, e.stop_step) for e in recording.select(phase=phase).episodes()]
    except StepError as error:
        return str(error)


@pytest.mark.parametrize("autoreset", ["same_step", "next_step"])
@pytest.mark.parametrize("chosen", ["all", "phase", "steps", "passes", "batch", "none", "last steps"])
@pytest.mark.parametrize("kept", ["RAM", "file"])
def test_a_recording_and_each_part_of_it_load_as_they_were(
    tmp_path: Path, kept: str, chosen: str, autoreset: str
) -> None:
    retain = {"retain": 5} if chosen == "last steps" and kept == "RAM" else {}
    sink = {"sink": tmp_path / "run.h5"} if kept == "file" else {}
    recording = run(autoreset=autoreset, **retain, **sink)
    options: dict[str, dict[str, Any]] = {
        "phase": {"phase": "rollout"},
        "steps": {"steps": slice(2, 5), "phase": "rollout"},
        "passes": {"passes": [1, 4, 9]},
        "batch": {"batch": 2},
        "none": {"passes": [], "phase": "rollout"},
    }
    part = recording.select(**options[chosen]) if chosen in options else recording
    part.save(tmp_path / "part.h5")
    assert verify(tmp_path / "part.h5").damage == []
    assert_same(fastrec.load(tmp_path / "part.h5", verify=True), part)


def test_a_folder_and_one_of_its_processes_are_saved(tmp_path: Path) -> None:
    for _ in range(2):
        run(4, sink=f"{tmp_path}/run/")
    whole = fastrec.load(f"{tmp_path}/run/")
    whole.save(tmp_path / "whole.h5")
    whole.select(role="main").save(tmp_path / "main.h5")
    assert_same(fastrec.load(tmp_path / "whole.h5"), whole)
    assert_same(fastrec.load(tmp_path / "main.h5"), whole)
    parts = sorted((tmp_path / "run").glob("*.h5"))
    merge(parts, tmp_path / "merged.h5", virtual=False)
    fastrec.load(tmp_path / "merged.h5").save(tmp_path / "again.h5")
    assert len(fastrec.load(tmp_path / "again.h5").processes) == 2


def test_a_file_that_is_there_is_not_replaced(tmp_path: Path) -> None:
    recording = run(2)
    recording.save(tmp_path / "run.h5")
    before = (tmp_path / "run.h5").read_bytes()
    with pytest.raises(RecordingExistsError, match="exists; give another path"):
        run(3).save(tmp_path / "run.h5")
    assert (tmp_path / "run.h5").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_popped_attached_and_transformed_values_are_saved_without_their_graph(tmp_path: Path) -> None:
    net = model()
    keep = op("tanh").with_(keep_grad=True, transform=lambda value: value.mean(-1))
    with Recorder(net, keep_op=keep) as rec:
        net(torch.ones(3, 4))
        popped = rec.pop()
    popped.save(tmp_path / "popped.h5")
    saved = fastrec.load(tmp_path / "popped.h5")
    assert torch.equal(saved[0].activation, popped[0].activation) and not saved[0].activation.requires_grad
    assert torch.equal(saved.stack("1/tanh", part="transformed_activation")[0], popped[0].transformed_activation)


def test_gradients_are_not_saved_and_a_warning_says_so(tmp_path: Path) -> None:
    net = model()
    with Recorder(net, keep_op="tanh", capture=CaptureSpec(save_gradient=True)) as rec:
        net(torch.ones(3, 4)).sum().backward()
    with pytest.warns(FastrecWarning, match="has the values and not the gradients") as warned:
        rec.recording.save(tmp_path / "run.h5")
    assert warned[0].filename == __file__
    assert torch.equal(fastrec.load(tmp_path / "run.h5")[0].activation, rec.recording[0].activation)
    torch.save(rec.recording.stack("1/tanh", part="gradient"), tmp_path / "gradients.pt")  # as the warning says


def test_a_saved_recording_is_continued(tmp_path: Path) -> None:
    run(4).save(tmp_path / "run.h5")
    run(3, sink=fastrec.sinks.HDF5Sink(tmp_path / "run.h5", append=True))
    recording = fastrec.load(tmp_path / "run.h5")
    assert recording.n_passes == 7 and [record.ctx.pass_index for record in recording["1/tanh"]] == list(range(7))
