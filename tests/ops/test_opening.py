"""Composites run opened as they run closed."""

from types import FunctionType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import overrides, randn

from fastrec.ops.facts import op_facts, openable, opened
from tests.helpers import op_calls
from tests.helpers.op_calls import Call, Opening, Seen, run_opened, tensors

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:FutureWarning")


def run_closed(call: Call) -> list[torch.Tensor]:
    torch.manual_seed(0)
    with Seen():
        return tensors(call())


CASES = {**op_calls.COMPOSITES, **op_calls.ONE_OP}
VARIANTS = [pytest.param(name, call, id=f"{name}-{i}") for name, calls in CASES.items() for i, call in enumerate(calls)]


@pytest.mark.parametrize(("name", "call"), VARIANTS)
def test_an_opened_function_gives_the_same_to_the_last_bit(name: str, call: Call) -> None:
    values, _ = run_opened(name, call)
    for value, expected in zip(values, run_closed(call), strict=True):
        assert value.dtype == expected.dtype and value.layout == expected.layout
        torch.testing.assert_close(value, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", op_calls.COMPOSITES)
def test_a_composite_runs_several_ops(name: str) -> None:
    inside = [seen for call in op_calls.COMPOSITES[name] for _, seen in run_opened(name, call)[1]]
    assert max(len(seen.layer_types) for seen in inside) > 1


@pytest.mark.parametrize("name", op_calls.ONE_OP)
def test_a_thin_wrapper_runs_one_op(name: str) -> None:
    for call in op_calls.ONE_OP[name]:
        for func, seen in run_opened(name, call)[1]:
            assert not op_facts(func).composite
            assert len(seen.layer_types) <= 1


# Leaves by decision: what their insides do is no computation, or one operator.
LEAVES = {
    *("__array__", "__deepcopy__", "__dlpack__", "__rdiv__", "embedding", "storage", "share_memory_"),
    *("index", "resize", "resize_as", "grad"),
}


def test_every_function_that_can_be_opened_was_run() -> None:
    overridable = {f for group in overrides.get_overridable_functions().values() for f in group}
    public = {f for name, f in vars(F).items() if isinstance(f, FunctionType) and not name.startswith("_")}
    # The functions of `torch.foreach` are of one op each, and have the names of other ops.
    functions = {f for f in overridable | public if getattr(f, "__module__", None) != "torch.foreach"}
    names = {f.__name__ for f in functions if openable(f) and op_facts(f) is not None}
    assert names - set(CASES) - LEAVES == set()


def test_a_division_by_a_tensor_is_one_op() -> None:
    assert not op_facts(torch.Tensor.__rdiv__).composite
    _, [(_, seen)] = run_opened("__rdiv__", lambda: 1 / randn(3))
    assert seen.layer_types == ["reciprocal", "mul"]


def test_a_users_own_composite_can_be_opened() -> None:
    assert op_facts(smooth).composite
    _, [(func, seen)] = run_opened("smooth", lambda: smooth(randn(3)))
    assert func is smooth
    assert seen.layer_types == ["tanh", "cos"]


has_torch_function = overrides.has_torch_function


def smooth(x: torch.Tensor) -> torch.Tensor:
    if has_torch_function((x,)):
        return overrides.handle_torch_function(smooth, (x,), x)
    return x.tanh().cos()


def test_an_opened_function_leaves_helpers_alone_that_ask_for_no_mode() -> None:
    _helper.calls = 0
    run_opened("counting", lambda: counting(randn(3)))
    assert _helper.calls == 1


def counting(x: torch.Tensor) -> torch.Tensor:
    if has_torch_function((x,)):
        return overrides.handle_torch_function(counting, (x,), x)
    return _helper(x)


def _helper(x: torch.Tensor) -> torch.Tensor:
    _helper.calls += 1
    return x.cos()


def test_a_function_with_a_variable_that_has_no_value_yet_can_be_opened() -> None:
    @overrides_itself
    def local(x: torch.Tensor) -> torch.Tensor:
        return x.tanh() if x is not None else later

    _, [(_, seen)] = run_opened("local", lambda: local(randn(3)))
    assert seen.layer_types == ["tanh"]
    later = None


def overrides_itself(func: Any) -> Any:
    def local(x: torch.Tensor) -> torch.Tensor:
        return overrides.handle_torch_function(local, (x,), x) if has_torch_function((x,)) else func(x)

    return local


def test_an_opened_function_uses_what_is_patched_into_the_module(monkeypatch) -> None:
    run_opened("multi_head_attention_forward", op_calls.attention)
    original, calls = F._in_projection_packed, []
    monkeypatch.setattr(F, "_in_projection_packed", lambda *args: calls.append(args) or original(*args))
    run_opened("multi_head_attention_forward", op_calls.attention)
    assert len(calls) == 1


def test_an_opened_function_is_made_once_and_leaves_the_original_alone() -> None:
    before = dict(vars(F)), F.softsign.__code__
    assert opened(F.softsign) is opened(F.softsign)
    assert opened(F.softsign) is not F.softsign
    assert (dict(vars(F)), F.softsign.__code__) == before
    assert opened(F.softsign).__name__ == "softsign"


@pytest.mark.parametrize("func", [torch.relu, torch.Tensor.add, len, lambda x: x])
def test_only_functions_that_ask_for_a_mode_can_be_opened(func: Any) -> None:
    with pytest.raises(TypeError, match="can't be opened: it isn't a Python function that asks"):
        opened(func)


def test_a_method_is_opened_through_the_function_that_it_forwards_to() -> None:
    _, [(_, seen)] = run_opened("stft", lambda: randn(32).stft(8, return_complex=True))
    assert seen.layer_types == ["view", "pad", "view", "stft"]


def test_gradients_flow_through_an_opened_function() -> None:
    x = randn(3, 4, requires_grad=True)
    (expected,) = torch.autograd.grad(F.normalize(x).sum(), x)
    with Opening("normalize"):
        out = F.normalize(x)
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(grad, expected)
