"""What is compiled is recognised in each form, and a torch in which parts are missing is refused by its version."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastrec._errors import UnsupportedModelError
from fastrec._torch import dynamo
from fastrec._torch.dynamo import (
    CompiledCode,
    compiled_part,
    is_compiled,
    is_compiled_wrapper,
    not_compiling,
    original_function,
    runs_compiled,
    without_disable,
)
from tests.helpers.compiling import fresh_dynamo as fresh_dynamo


class Model(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1

    def act(self, x: Tensor) -> Tensor:
        return x + 2


def compiled_in_place() -> nn.Module:
    model = Model()
    model.compile(backend="eager")
    return model


def compiled_forward() -> nn.Module:
    model = Model()
    model.forward = torch.compile(model.forward, backend="eager")  # type: ignore[method-assign]
    return model


COMPILED: dict[str, Callable[[], Any]] = {
    "module": lambda: torch.compile(Model(), backend="eager"),
    "in place": compiled_in_place,
    "forward": compiled_forward,
    "function": lambda: torch.compile(lambda x: x + 1, backend="eager"),
    "method": lambda: torch.compile(Model().act, backend="eager"),
}


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_roots_are_recognised(name: str) -> None:
    root = COMPILED[name]()
    assert is_compiled(root)
    assert callable(compiled_part(root))
    if isinstance(root, nn.Module):
        assert runs_compiled(root)
        assert is_compiled_wrapper(root) is (name == "module")


@pytest.mark.parametrize("root", [Model(), Model().act, len, nn.Sequential(Model())])
def test_other_roots_are_not_compiled(root: Any) -> None:
    assert not is_compiled(root) and compiled_part(root) is None
    assert not isinstance(root, nn.Module) or not runs_compiled(root)


def test_a_disabled_function_is_given_back_and_its_copies_are_left_alone() -> None:
    def plain(x: int) -> int:
        return x

    disabled = torch.compiler.disable(plain)
    assert original_function(disabled) is plain and original_function(plain) is None
    # Before 2.11 nothing tells a wrapper from its copies, so it is called as it is.
    can_be_told = hasattr(disabled, "_torchdynamo_wrapper_id")
    assert without_disable(disabled) is (plain if can_be_told else disabled) and without_disable(plain) is plain

    @functools.wraps(disabled)
    def around(x: int) -> int:
        return disabled(x) + 1

    assert without_disable(around) is around
    compiled = torch.compile(plain, backend="eager")
    assert without_disable(compiled) is compiled


def test_models_are_told_that_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "_is_compiling_flag", True)
    with not_compiling():
        assert not torch.compiler.is_compiling()
    assert torch.compiler.is_compiling()


@pytest.mark.parametrize(
    ("parts", "changed", "message"),
    [
        ("_CONTEXT_PARTS", ("callback", "_no_such_part"), "does not find _no_such_part"),
        ("_DYNAMO_PARTS", {"eval_frame": ("no_such_name",)}, "does not find torch._dynamo.eval_frame.no_such_name"),
        ("_DYNAMO_PARTS", {"no_such_file": ("name",)}, "does not find torch._dynamo.no_such_file.name"),
    ],
)
def test_a_torch_without_a_part_is_refused_by_name(
    parts: str, changed: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = torch.compile(Model(), backend="eager")
    CompiledCode(compiled_part(model), "the model")
    monkeypatch.setattr(dynamo, parts, changed)
    with pytest.raises(
        UnsupportedModelError, match=rf"the model is compiled by torch 2\.\d+.*{message}.*engine='eager'"
    ):
        CompiledCode(compiled_part(model), "the model")


def test_calls_of_a_function_are_caught_until_it_is_released() -> None:
    function = torch.compile(lambda x: x + 1, backend="eager")
    code = CompiledCode(function, "the model")
    x = torch.ones(2)
    code.catch(lambda own, args, kwargs: own(*args, **kwargs) * 10)
    assert torch.equal(function(x), torch.full((2,), 20.0))
    code.release()
    assert torch.equal(function(x), torch.full((2,), 2.0))
    assert torch.equal(code.plain(x), torch.full((2,), 2.0))
