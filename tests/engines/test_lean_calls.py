import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.eval_frame import set_eval_frame
from torch._dynamo.mutation_guard import GenerationTracker

from fastrec import Recorder
from fastrec._torch.dynamo import Switch, lean_call, leaves_no_state, quiet_compiling
from tests.compiling import fresh_dynamo as fresh_dynamo


def called(function: Callable[..., Any], *args: Any) -> list[str]:
    """The names of the Python functions that run."""
    names: list[str] = []
    sys.setprofile(lambda frame, event, arg: names.append(frame.f_code.co_name) if event == "call" else None)
    try:
        function(*args)
    finally:
        sys.setprofile(None)
    return names


def double(x: Tensor) -> Tensor:
    if x.shape[0] > 100:
        raise ValueError("too long")
    return x * 2


def on() -> Switch:
    switch = Switch()
    switch.on = True
    return switch


def test_a_lean_call_computes_the_same_without_torchs_wrapper() -> None:
    compiled = torch.compile(double, backend="eager")
    expected = compiled(torch.ones(3))
    call = lean_call(compiled, on())
    assert torch.equal(call(torch.ones(3)), expected)
    assert "compile_wrapper" in called(compiled, torch.ones(3))
    assert "compile_wrapper" not in called(call, torch.ones(3))


def test_a_lean_call_counts_as_one() -> None:
    compiled = torch.compile(double, backend="eager")
    compiled(torch.ones(3))
    for call in (compiled, lean_call(compiled, on())):
        before = GenerationTracker.generation
        call(torch.ones(3))
        assert GenerationTracker.generation == before + 1  # CUDA graphs overwrite outputs of earlier calls


def test_a_lean_call_goes_through_the_wrapper_while_the_switch_is_off() -> None:
    compiled = torch.compile(double, backend="eager")
    compiled(torch.ones(3))
    assert "compile_wrapper" in called(lean_call(compiled, Switch()), torch.ones(3))


def test_a_lean_call_compiles_for_what_the_code_does_not_fit() -> None:
    graphs = []

    def backend(module: Any, inputs: Any) -> Any:
        graphs.append(module)
        return module.forward

    compiled = torch.compile(double, backend=backend, dynamic=None)
    compiled(torch.ones(3))
    call = lean_call(compiled, on())
    assert torch.equal(call(torch.ones(3, dtype=torch.int64)), torch.full((3,), 2))
    assert len(graphs) == 2


def test_a_stance_is_obeyed() -> None:
    compiled = torch.compile(double, backend="eager")
    compiled(torch.ones(3))
    call = lean_call(compiled, on())
    with torch.compiler.set_stance("force_eager"):
        assert "compile_wrapper" in called(call, torch.ones(3))
        # Who opens a recorder under a stance has no default one to compare with.
        assert lean_call(compiled, on()) is compiled
    assert "compile_wrapper" not in called(call, torch.ones(3))


@pytest.mark.parametrize("options", [{"fullgraph": True}, {"dynamic": True}])
def test_what_the_wrapper_does_for_an_option_is_left_to_it(options: dict[str, Any]) -> None:
    compiled = torch.compile(double, backend="eager", **options)
    assert lean_call(compiled, on()) is compiled


def test_inside_of_a_transform_or_a_trace_the_wrapper_decides() -> None:
    compiled = torch.compile(double, backend="eager")
    compiled(torch.ones(3))
    call = lean_call(compiled, on())
    assert torch.equal(torch.func.vmap(call)(torch.ones(2, 3)), torch.full((2, 3), 2.0))
    with pytest.raises(RuntimeError, match="jit.trace a dynamo-optimized function"):
        torch.jit.trace(call, torch.ones(3))


def test_after_an_error_nothing_is_compiled_that_was_not_before() -> None:
    compiled = torch.compile(double, backend="eager")
    compiled(torch.ones(3))
    call = lean_call(compiled, on())
    with pytest.raises(ValueError, match="too long"):
        call(torch.ones(101))
    before = set_eval_frame(None)
    assert before is None


def test_a_graph_that_changes_a_state_of_torch_is_told_from_others() -> None:
    found = []

    def backend(module: Any, inputs: Any) -> Any:
        found.append(leaves_no_state(module.graph))
        return module.forward

    def mixed(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return x @ x

    torch.compile(double, backend=backend)(torch.ones(3))
    torch.compile(mixed, backend=backend)(torch.ones(3, 3))
    torch.compile(torch.func.vmap(torch.sin), backend=backend)(torch.ones(3, 3))
    assert found == [True, False, False]


def test_no_marks_for_the_profiler_are_compiled() -> None:
    marked, unmarked = torch.compile(double, backend="eager"), torch.compile(lambda x: x * 3, backend="eager")
    quiet_compiling(unmarked)
    for compiled in (marked, unmarked):
        compiled(torch.ones(3))
    assert "record_pregraph_bytecode_enter" in called(marked, torch.ones(3))
    assert "record_pregraph_bytecode_enter" not in called(unmarked, torch.ones(3))
    assert torch._dynamo.config.record_runtime_overhead


class Autocast(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return (x @ x).relu()


@pytest.mark.parametrize(("model", "lean"), [(nn.Sequential(nn.Linear(3, 3), nn.ReLU()), True), (Autocast(), False)])
def test_a_recorded_model_is_called_leanly_where_no_state_can_be_left_behind(model: nn.Module, lean: bool) -> None:
    compiled = torch.compile(model, backend="eager")
    x = torch.ones(3, 3)
    with torch.no_grad(), Recorder(compiled, keep_op="relu") as rec:
        compiled(x)
        assert ("compile_wrapper" not in called(compiled, x)) is lean
    assert len(rec.recording) == 2
    assert "compile_wrapper" in called(compiled, x)
