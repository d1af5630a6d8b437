"""One way to run a model: what is refused, and what an engine sees of it."""

import warnings
from typing import Any

import pytest
import torch
from torch import nn

import fastrec
from fastrec import CaptureSpec, FastrecWarning
from fastrec._errors import FusedKernelWarning, OptionError
from fastrec.predicates import every, op
from fastrec.session.inputs import NOT_GIVEN, ModelRun


class Regions:
    """An engine that notes the regions it is asked for."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def enter_region(self, name: str) -> Any:
        self.calls.append(name)
        return "token"

    def leave_region(self, token: Any, error: BaseException | None) -> bool:
        self.calls.append((token, error))
        return False


@pytest.mark.parametrize(
    ("inputs", "call", "message"),
    [
        (NOT_GIVEN, None, "give either input_args or input_kwargs, or call="),
        (torch.ones(2), lambda: None, "give either input_args or input_kwargs, or call="),
        (torch.ones(2), None, r"there are several roots \('a', 'b'\), and inputs are for one; run them with call="),
    ],
)
def test_there_is_one_way_to_run_a_model(inputs: Any, call: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        ModelRun.of({"a": nn.ReLU(), "b": nn.ReLU()}, inputs, None, call)


def test_inputs_are_given_to_the_root() -> None:
    engine = Regions()
    run = ModelRun.of({"": nn.Bilinear(2, 2, 1)}, (torch.ones(2), torch.ones(2)), None, None)
    assert run(engine).shape == (1,)
    assert ModelRun.of({"": nn.ReLU()}, None, {"input": torch.ones(2)}, None).args == (None,)  # None is an input too
    assert engine.calls == []


def test_a_function_runs_in_a_region() -> None:
    engine = Regions()
    assert ModelRun.of({"": nn.ReLU()}, NOT_GIVEN, None, lambda: 5)(engine) == 5
    assert engine.calls == ["call", ("token", None)]


def test_a_region_learns_of_the_error_that_leaves_it() -> None:
    engine, error = Regions(), ValueError("no")

    def fail() -> None:
        raise error

    with pytest.raises(ValueError, match="no"):
        ModelRun.of({"": nn.ReLU()}, NOT_GIVEN, None, fail)(engine)
    assert engine.calls == ["call", ("token", error)]


def test_only_the_warning_about_fused_kernels_is_silenced() -> None:
    def warn() -> None:
        warnings.warn("fused", FusedKernelWarning, stacklevel=1)
        warnings.warn("other", FastrecWarning, stacklevel=1)

    with pytest.warns(FastrecWarning) as seen:
        ModelRun.of({"": nn.ReLU()}, NOT_GIVEN, None, warn)(Regions())
    assert [str(warning.message) for warning in seen] == ["other"]


class Keyed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 2)

    def forward(self, *, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.net(tokens) * mask
        return out


def test_keywords_alone_are_inputs() -> None:
    model, batch = Keyed(), {"tokens": torch.randn(2, 4), "mask": torch.ones(2, 1)}
    want = model(**batch)
    assert torch.equal(fastrec.record(model, input_kwargs=batch, keep_op="mul").stack("/mul")[0], want)
    assert fastrec.dry_run(model, input_kwargs=batch, keep_op="mul").kept
    with fastrec.Recorder(model, keep_op="mul") as rec:
        assert torch.equal(rec.log(input_kwargs=batch), want)
        with pytest.raises(OptionError, match="give either input_args or input_kwargs"):
            rec.log()
        with pytest.raises(OptionError, match="input_kwargs got a Tensor; give a dict"):
            rec.log(input_kwargs=torch.ones(2))  # type: ignore[arg-type]
    assert rec.recording.n_passes == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_device_that_is_not_there_is_refused_when_the_recorder_is_made() -> None:
    model = nn.Linear(4, 2)
    for options in (
        {"keep_op": "linear", "capture": CaptureSpec(device="cuda")},
        {"keep_op": op("linear").with_(device="cuda:1") & every(2)},
    ):
        with pytest.raises(OptionError, match=r"device='cuda(:1)?'\): torch finds no cuda here; give device='cpu'"):
            fastrec.Recorder(model, **options)


def test_a_dtype_may_be_named() -> None:
    half = CaptureSpec(dtype="bfloat16")  # type: ignore[arg-type]
    recording = fastrec.record(nn.Linear(4, 2), torch.ones(1, 4), keep_op="linear", capture=half)
    assert recording[0].activation.dtype == torch.bfloat16
    with pytest.raises(OptionError, match="dtype='bfloat61'.: give a torch.dtype such as torch.bfloat16, its name"):
        CaptureSpec(dtype="bfloat61")  # type: ignore[arg-type]
