"""A compiled model that iterates over a tensor is recorded as the model itself is.

Dynamo traces ``xs[0]``, ``xs[1]`` and so on where the model itself calls ``unbind`` once.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fastrec import Recorder
from tests.engines.compiled.guards import Does
from tests.engines.compiled.guards import fresh_dynamo as fresh_dynamo
from tests.engines.compiled.test_engine import assert_same, both
from tests.helpers.compiling import EVERYTHING

X = torch.linspace(-1, 1, 12).reshape(3, 2, 2)


def _unrolled(m: Any, x: Any) -> Any:
    h = torch.zeros(2, 2)
    for row in x:
        h = (h + row).tanh()
    return h


def _zipped(m: Any, x: Any) -> Any:
    y = x.sin()
    return torch.stack([i * a + b for i, (a, b) in enumerate(zip(x, y, strict=True))])


def _nested(m: Any, x: Any) -> Any:
    total = torch.zeros(())
    for column in x.transpose(0, 1):
        for row in column:
            total = total + row.sum()
    return total


def _again(m: Any, x: Any) -> Any:
    """The same tensor several times, and the same elements without an iteration."""
    first, total = x[0], torch.zeros(())
    for row in x:
        for other in x:
            total = total + (row * other).sum()
    return total + first + x[2]


def _unused(m: Any, x: Any) -> Any:
    first, *_ = x
    return first.cos() + x[1]


def _same_line(m: Any, x: Any) -> Any:
    first, *_ = x
    other = x[2]  # noqa: E702
    return first + other


def _backwards(m: Any, x: Any) -> Any:
    h = torch.zeros(2, 2)
    for row in reversed(list(x)):
        h = h.sin() + row
    return [h + row for row in x][-1]


def _written(m: Any, x: Any) -> Any:
    y = x + 0
    total = torch.zeros(2, 2)
    for row in y:
        row.mul_(2)
        total = total + row
    return total + y[0]


def _parts(m: Any, x: Any) -> Any:
    """No iteration, and parts that nobody uses of what the model was given."""
    first, _, _ = x.chunk(3)
    x[0].add_(1)
    return first.sum()


@pytest.mark.parametrize(
    "forward",
    [_unrolled, _zipped, _nested, _again, _unused, _same_line, _backwards, _written, _parts],
    ids=lambda forward: forward.__name__.strip("_"),
)
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_iterations_are_recorded_as_those_of_the_model(forward: Callable[..., Any], backend: str) -> None:
    with torch.no_grad():
        eager, compiled = both(Does(forward), [X, -X], backend, **EVERYTHING)
    assert len(eager) > 4
    assert_same(compiled, eager)


def test_gradients_pass_through_what_is_kept_of_an_iteration() -> None:
    x = X.clone().requires_grad_()
    run: Any = torch.compile(Does(_unrolled), backend="aot_eager")
    with Recorder(run, keep_op="unbind") as rec:
        run(x).sum().backward()
    expected = X.clone().requires_grad_()
    _unrolled(None, expected).sum().backward()
    assert x.grad is not None and expected.grad is not None
    torch.testing.assert_close(x.grad, expected.grad)
    kept: list[Any] = [record.activation for record in rec.recording]
    assert torch.equal(torch.stack(kept), X)
