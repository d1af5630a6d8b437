"""One way to run a model: what is refused, and what an engine sees of it."""

import warnings
from typing import Any

import pytest
import torch
from torch import nn

from fastrec import FastrecWarning
from fastrec._errors import FusedKernelWarning, OptionError
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
        (NOT_GIVEN, None, "give either input_args, or call="),
        (torch.ones(2), lambda: None, "give either input_args, or call="),
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
