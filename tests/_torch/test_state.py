"""A model that ran on the side is afterwards what it was before."""

import random
from collections import OrderedDict, deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastrec
from fastrec import FastrecWarning
from fastrec._torch import state
from fastrec._torch.state import random_state_restored, restored
from fastrec.graph import log_forward_pass, validate_saved_activations


class Rope(nn.Module):
    """Fills what it needs at its first call, and remembers that it did."""

    def __init__(self, make: Callable[[Any], None], run: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        make(self)
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def _table_in(get: Callable[[Any], Any]) -> Callable[[Any, Tensor], Tensor]:
    def run(module: Any, x: Tensor) -> Tensor:
        holder = get(module)
        if holder["n"] < len(x):
            holder["table"][: len(x)] = 2.0
            holder["n"] = len(x)
        return x * holder["table"][: len(x)]

    return run


def _in_dict(module: Any) -> None:
    module.cache = {"n": 0, "table": torch.zeros(8, 4)}


def _in_object(module: Any) -> None:
    module.cache = SimpleNamespace(n=0, table=torch.zeros(8, 4))


def _in_nested(module: Any) -> None:
    module.caches = [({"n": 0, "table": torch.zeros(8, 4)},)]


def _in_unregistered_module(module: Any) -> None:
    module.parts = [nn.Module()]
    module.parts[0].n = 0
    module.parts[0].register_buffer("table", torch.zeros(8, 4))


def _in_attributes(module: Any) -> None:
    module.n, module.table = 0, torch.zeros(8, 4)


def _in_parameter(module: Any) -> None:
    module.n, module.table = 0, nn.Parameter(torch.zeros(8, 4), requires_grad=False)


def _in_array(module: Any) -> None:
    module.n, module.numbers = 0, np.zeros((8, 4), np.float32)


def _of_array(module: Any, x: Tensor) -> Tensor:
    if module.n < len(x):
        module.numbers[: len(x)] = 2.0
        module.n = len(x)
    return x * torch.tensor(module.numbers[: len(x)])


class _Both(dict[str, Any]):
    """Reads attributes of an object, or of the module itself, as a dict."""

    def __init__(self, holder: Any) -> None:
        super().__init__(
            n=holder.n, table=getattr(holder, "table", None) if not isinstance(holder, nn.Module) else holder.table
        )
        self.holder = holder

    def __setitem__(self, key: str, value: Any) -> None:
        setattr(self.holder, key, value)


MODELS: dict[str, tuple[Callable[[Any], None], Callable[[Any, Tensor], Tensor]]] = {
    "dict": (_in_dict, _table_in(lambda m: m.cache)),
    "object": (_in_object, _table_in(lambda m: _Both(m.cache))),
    "nested": (_in_nested, _table_in(lambda m: m.caches[0][0])),
    "unregistered": (_in_unregistered_module, _table_in(lambda m: _Both(m.parts[0]))),
    "attributes": (_in_attributes, _table_in(_Both)),
    "parameter": (_in_parameter, _table_in(_Both)),
    "array": (_in_array, _of_array),
}

LOOKS: dict[str, Callable[[Any, Tensor], Any]] = {
    "dry run": lambda m, x: fastrec.dry_run(m, x, keep_op=True),
    "dry run of a call": lambda m, x: fastrec.dry_run(m, call=lambda: m(x), keep_op=True),
    "validation": validate_saved_activations,
}


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_fills_a_table_once_is_what_it_was_after_it_was_looked_at(name: str, look: str) -> None:
    model, x = Rope(*MODELS[name]), torch.randn(5, 4)
    before = str(vars(model))
    LOOKS[look](model, x)
    assert str(vars(model)) == before
    assert torch.equal(model(x), x * 2)


def test_a_selection_of_layers_runs_the_model_as_if_once() -> None:
    model, x = Rope(*MODELS["dict"]), torch.randn(5, 4)
    history = log_forward_pass(model, x, layers_to_save=["mul"])
    assert torch.equal(history["mul_1"].activation, x * 2)
    assert torch.equal(model(x), x * 2)


def test_containers_generators_and_new_attributes_are_put_back() -> None:
    module: Any = nn.Linear(2, 2)
    module.seen, module.names, module.order = deque([1]), {"a"}, OrderedDict(a=1)
    module.draw, module.python, module.numpy = torch.Generator(), random.Random(0), np.random.default_rng(0)
    states = module.draw.get_state(), module.python.getstate(), module.numpy.bit_generator.state
    with restored([module]):
        module.seen.append(2)
        module.names.clear()
        module.order["b"] = module.extra = 2
        torch.rand(1, generator=module.draw)
        module.python.random()
        module.numpy.random()
    assert (list(module.seen), module.names, list(module.order)) == ([1], {"a"}, ["a"])
    assert not hasattr(module, "extra")
    assert torch.equal(module.draw.get_state(), states[0])
    assert (module.python.getstate(), module.numpy.bit_generator.state) == states[1:]


def test_a_lazy_model_is_lazy_again_and_then_starts_as_without_the_look() -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.Linear(8, 2))

    torch.manual_seed(0)
    expected, x = make(), torch.randn(3, 4)
    expected(x)
    torch.manual_seed(0)
    model, x = make(), torch.randn(3, 4)
    with random_state_restored(), restored([model]):
        model(x + 1)
    assert type(model[0]) is nn.LazyLinear
    fastrec.dry_run(model, x + 1)
    model(x)
    assert type(model[0]) is nn.Linear
    assert {k: v.tolist() for k, v in model.state_dict().items()} == {
        k: v.tolist() for k, v in expected.state_dict().items()
    }


def test_a_written_tensor_that_is_too_large_to_be_copied_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "MAX_COPIED_BYTES", 4)
    model = Rope(*MODELS["attributes"])
    with pytest.warns(FastrecWarning, match=r"shape \(8, 4\).*copy.deepcopy"):
        fastrec.dry_run(model, torch.ones(5, 4))
