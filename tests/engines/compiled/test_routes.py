"""A pass is fed as its reference trace says, or refused where that does not hold for it."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from fastrec import Recorder
from fastrec._errors import UnsupportedModelError
from fastrec.engines.compiled import routes
from tests.engines.compiled.guards import Does, X, break_graph, labels, parts
from tests.engines.compiled.guards import fresh_dynamo as fresh_dynamo


def test_what_only_compiled_code_computes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def more(m: Any, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            x = x.relu() + 1
        return (x * 2).relu()

    assert labels(lambda: Does(more), "relu") == "UnsupportedModelError"
    monkeypatch.setattr(routes.GraphRoute, "_check_unmatched", lambda self, aligned: None)
    assert labels(lambda: Does(more), "relu") != "UnsupportedModelError"


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_trace_that_took_another_way_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = itertools.cycle([0, 1])

    def wanders(m: Any, x: Tensor) -> Tensor:
        x = (x.sin() if _turn() else x.sin().cos()).relu()
        return break_graph(x).relu() if x.sum() > 20 else x

    @torch._dynamo.disable
    def _turn() -> bool:
        return next(turns) == 0

    def drive() -> None:
        run = torch.compile(Does(wanders), backend="eager")
        with torch.no_grad(), Recorder(run, keep_op="relu"):
            for index in range(8):
                run(X + index % 5)

    with pytest.raises(UnsupportedModelError, match="took another way|computes"):
        drive()
    monkeypatch.setattr(routes.GraphTransition, "feeds_as", lambda self, other: True)
    monkeypatch.setattr(routes.GraphRoute, "_check_unmatched", lambda self, aligned: None)
    torch._dynamo.reset()
    drive()


def test_plain_values_tell_that_they_carry_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = ["tanh_1", "relu_1"]
    assert labels(lambda: Does(parts), ["tanh", "relu"], grad=True) == expected
    make = routes.GraphTransition.__init__

    class Unmarked(list[int]):
        def append(self, position: int) -> None:
            pass

    def unmarked(self: Any, links: Any) -> None:
        make(self, links)
        self.differentiable = Unmarked()

    monkeypatch.setattr(routes.GraphTransition, "__init__", unmarked)
    assert labels(lambda: Does(parts), ["tanh", "relu"], grad=True) == "AssertionError"
