"""What the tests of the compiled engine's guards share: models, and what is recorded of them.

A guard is tested by switching it off: without it a recording is wrong, or the model computes something else.
"""

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastrec import FastrecWarning, Recorder
from fastrec._errors import FastrecError
from tests.helpers.naive import seeded

X = torch.linspace(-1, 2, 16).reshape(4, 4)


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    """Nothing is compiled, and nothing warns of what a graph does not hold, in tests of a module that imports this."""
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FastrecWarning)
        yield
    torch._dynamo.reset()


class Does(nn.Module):
    """Runs a function, some of whose parts can be inside of modules of their own."""

    def __init__(self, does: Callable[[Any, Tensor], Any], **parts: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.lin, self.probe = nn.Linear(4, 4), nn.Linear(4, 4)
        self.does = does
        for name, part in parts.items():
            setattr(self, name, Does(part))

    def forward(self, x: Tensor) -> Any:
        return self.does(self, x)


def recorded(
    make: Callable[[], nn.Module], keep: Any, *, passes: int = 1, backend: Any = "aot_eager", grad: bool = False
) -> list[tuple[str, Tensor]]:
    """The labels and values of a compiled model's records; values that differ from the eager ones are an error."""
    with seeded():
        model = make()
    twin = copy.deepcopy(model)
    run = torch.compile(model, backend=backend)
    with torch.set_grad_enabled(grad):
        with Recorder(twin, keep_op=keep) as eager, seeded():
            for index in range(passes):
                twin(X + index)
        with Recorder(run, keep_op=keep) as rec, seeded():
            for index in range(passes):
                run(X + index)
    expected = {(record.ctx.pass_index, record.ctx.label): record for record in eager.recording}
    for record in rec.recording:
        other = expected[record.ctx.pass_index, record.ctx.label]
        assert record.ctx.tensor_requires_grad == other.ctx.tensor_requires_grad
        assert torch.allclose(record.activation, other.activation), record
    return [(record.ctx.label, record.activation) for record in rec.recording]


def labels(make: Callable[[], nn.Module], keep: Any, **options: Any) -> list[str] | str:
    """The labels of what was recorded, or what was wrong with it."""
    torch._dynamo.reset()
    try:
        return [label for label, _ in recorded(make, keep, **options)]
    except (AssertionError, FastrecError, RuntimeError, KeyError) as error:
        return type(error).__name__


def break_graph(value: Tensor) -> Tensor:
    torch._dynamo.graph_break()
    return value


@torch._dynamo.disable
def sin_between(x: Tensor) -> Tensor:
    return x.sin()


@torch._dynamo.disable
def between(function: Callable[[], Any]) -> None:
    """Run what no compiled graph holds."""
    function()


def cosine(m: Any, x: Tensor) -> Tensor:
    return x.cos()


def parts(m: Any, x: Tensor) -> Tensor:
    y = m.lin(x)
    m.probe(y.tanh()).relu()
    return y.sin()
