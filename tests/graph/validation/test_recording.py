"""A fast recording is checked against the graph, whatever engine and sink it came from."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastrec
from fastrec import CaptureSpec, FastrecError, Recorder, Recording
from fastrec.graph import validate_recording
from fastrec.predicates import every, kind, op
from fastrec.sinks import HDF5Sink, RAMSink


class Varied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.lstm, self.head = nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.norm(self.conv(x)).relu_()
        x = x.flatten(2).transpose(1, 2)
        x, (hidden, _) = self.lstm(x)
        x += 1
        return {"out": self.head(x), "attention": nn.functional.scaled_dot_product_attention(x, x, x), "h": hidden}


X = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def recorded(model: nn.Module, **options: Any) -> Recording:
    recording = fastrec.record(model, X, **options)
    assert isinstance(recording, Recording)
    return recording


OPTIONS: list[dict[str, Any]] = [
    {"keep_op": True, "keep_module": True},
    {"keep_op": kind("op") | kind("buffer") | kind("input"), "include_source_events": True},
    {"keep_op": op("add", "relu"), "keep_module": "lstm"},
    {"keep_op": True, "capture": CaptureSpec(dtype=torch.float16)},
    {"keep_op": True, "capture": CaptureSpec(transform=torch.mean, save_raw=False)},
    {"keep_op": True, "capture": CaptureSpec(keep_grad=True)},
    {"keep_module": "**", "capture": CaptureSpec(save_activation=False)},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_a_right_recording_is_valid(options: dict[str, Any]) -> None:
    model = Varied().eval()
    report = validate_recording(model, recorded(model, **options), X)
    assert report and report.unchecked == [], report
    assert report.n_operations > 2


def test_a_file_is_checked_as_well(tmp_path: Path) -> None:
    model = Varied().eval()
    path = tmp_path / "run.h5"
    with Recorder(model, keep_op=True, keep_module=True, sink=str(path)):
        model(X)
    report = validate_recording(model, fastrec.load(path), X)
    assert report and report.n_replayed > 10


@pytest.mark.parametrize("engine", ["eager", "static"])
@pytest.mark.parametrize("sinks", ["memory", "file", "both"])
def test_any_engine_and_any_sink_is_checked(engine: Any, sinks: str, tmp_path: Path) -> None:
    model, path = Varied().eval(), tmp_path / "run.h5"
    file = HDF5Sink(path, compression="gzip")
    sink: Any = {"memory": RAMSink(), "file": file, "both": [RAMSink(), file]}[sinks]
    with torch.no_grad(), Recorder(model, keep_op=True, keep_module=True, engine=engine, sink=sink) as rec:
        for x in (X, -X, X):  # the static engine runs by its plan from the second pass on
            model(x)
    recordings = [rec.recording] if sinks == "memory" else [fastrec.load(path)]
    recordings += [rec.recording] if sinks == "both" else []
    with torch.no_grad():
        for recording in recordings:
            report = validate_recording(model, recording, X, pass_index=2)
            assert report and report.n_replayed == 22 and report.unchecked == [], report
            wrong = validate_recording(model, recording, X, pass_index=1)
            assert "conv2d_1 at conv/conv2d" in str(wrong.first_failure)


@pytest.mark.parametrize("in_file", [False, True])
def test_a_compiled_model_is_checked_against_the_one_that_it_was_made_from(in_file: bool, tmp_path: Path) -> None:
    model, path = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)), tmp_path / "run.h5"
    compiled: Any = torch.compile(model, backend="eager")
    x = torch.randn(3, 4)
    with torch.no_grad(), Recorder(compiled, keep_op=True, keep_module="2", sink=str(path) if in_file else None) as rec:
        compiled(x)
    recording = fastrec.load(path) if in_file else rec.recording
    with torch.no_grad():
        report = validate_recording(compiled, recording, x, tolerance=1e-4)
        assert report and report.n_replayed == 4, report
        with pytest.raises(FastrecError, match="give the model that it was made from"):
            validate_recording(compiled, recording, call=lambda: compiled(x))
        model[0].weight.mul_(2)  # type: ignore[operator]
        assert not validate_recording(compiled, recording, x, tolerance=1e-4)


@pytest.mark.parametrize("save_raw", [False, True])
def test_what_a_transform_in_a_file_made_is_not_checked(save_raw: bool, tmp_path: Path) -> None:
    model, path = nn.Sequential(nn.Linear(4, 8), nn.ReLU()), tmp_path / "run.h5"
    x = torch.randn(3, 4)
    capture = CaptureSpec(transform=torch.mean, save_raw=save_raw)
    with torch.no_grad(), Recorder(model, keep_op=True, capture=capture, sink=str(path)):
        model(x)
    report = validate_recording(model, fastrec.load(path), x)
    assert report and report.n_replayed == 2 * save_raw, report
    assert [entry.name for entry in report.unchecked] == ["linear_1 at 0/linear", "relu_1 at 1/relu"]


def test_one_pass_of_many_is_named() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh())
    xs = torch.randn(3, 2, 4)
    with Recorder(model, keep_op=True) as rec:
        for x in xs:
            model(x)
    with pytest.raises(FastrecError, match=r"records of 3 passes \(0, 1, 2\), and inputs are those of one"):
        validate_recording(model, rec.recording, xs[0])
    assert validate_recording(model, rec.recording, xs[1], pass_index=1)
    report = validate_recording(model, rec.recording, xs[1], pass_index=2)
    assert not report and "its activation is not the operation's value" in str(report.first_failure)
    with pytest.raises(FastrecError, match="it has some of passes 0 to 2"):
        validate_recording(model, rec.recording, xs[1], pass_index=7)


def test_the_record_that_differs_is_named() -> None:
    model = Varied().eval()
    recording = recorded(model, keep_op=True)
    wrong = recording["relu_1"][0]
    assert wrong.activation is not None
    wrong.activation[0, 0] += 1
    report = validate_recording(model, recording, X)
    assert [failure.name for failure in report.failures] == [f"relu_1 at {wrong.ctx.site}"]


def test_another_model_ran_other_operations() -> None:
    recording = recorded(Varied().eval(), keep_op=True)
    report = validate_recording(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), recording, X)
    assert not report and "no operation of this history is the op" in str(report.first_failure)


def test_what_had_to_be_kept_is_missed() -> None:
    model = Varied().eval()
    recording = recorded(model, keep_op=op("add"))
    recording._source.catalog.header["keep_op"] = "op('add', 'relu')"
    report = validate_recording(model, recording, X)
    assert "this op had to be kept, and is missing" in str(report.first_failure)
    recording._source.catalog.header["keep_op"] = "op('relu')"
    assert "should not have been kept" in str(validate_recording(model, recording, X))


@pytest.mark.parametrize("predicate", [lambda ctx: ctx.layer_type == "add", op("add") & every(1)])
def test_a_predicate_that_no_text_tells_leaves_open_what_is_missing(predicate: Any) -> None:
    model = Varied().eval()
    report = validate_recording(model, recorded(model, keep_op=predicate), X)
    assert report and [entry.name for entry in report.unchecked] == ["what is missing"]


def test_other_parameters_are_another_model() -> None:
    recording = recorded(Varied().eval(), keep_op="linear")
    assert validate_recording(Varied().eval(), recording, X).failures


def test_a_pass_in_training_is_checked_with_its_seed() -> None:
    model = nn.Sequential(nn.Linear(4, 30), nn.Dropout(0.5))
    x = torch.ones(2, 4)
    recording = fastrec.record(model, x, keep_op=True, random_seed=3)
    assert validate_recording(model, recording, x, random_seed=3)
    assert not validate_recording(model, recording, x, random_seed=4)
