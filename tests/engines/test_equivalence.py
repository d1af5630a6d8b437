"""Every engine gives the records of the eager one: sites, labels, order, contexts, and the values to the last bit.

An engine takes part by its name in ``ENGINES``. ``LOOSE`` names those whose values may differ within the tolerance of a
compiler, ``OPAQUE`` those that can ask a callable at each event.
"""

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fastrec import CaptureSpec, Recorder
from fastrec.predicates import (
    after,
    dtype,
    entry,
    every,
    first,
    grad_enabled,
    inside,
    kind,
    module,
    module_input,
    module_type,
    op,
    phase,
    shape,
)
from tests.helpers.made_models import made_models
from tests.helpers.models import MODELS
from tests.helpers.naive import same_bits, seeded
from tests.helpers.same_recordings import assert_same_recordings, facts_of

ENGINES = ["static"]
LOOSE = {"compiled"}
OPAQUE = {"static"}

PASSES = 7
HEAVY = {"resnet", "encoder", "attention", "recurrent"}
"""Models that are tried with every second predicate only."""

PREDICATES: dict[str, dict[str, Any]] = {
    "one op type": {"keep_op": ["relu", "tanh", "layernorm", "linear"]},
    "all ops": {"keep_op": True},
    "all modules": {"keep_module": True},
    "modules by class": {"keep_module": module_type("Linear", nn.ReLU, nn.Tanh)},
    "what goes into modules": {"keep_module": module_input("**")},
    "everything": {"keep_op": True, "keep_module": kind("module_enter", "module_exit")},
    "a history": {"keep_op": op("relu", "add", "tanh", "sin") & after("linear", within=3)},
    "some passes": {"keep_op": op("linear") & every(3), "keep_module": module("**") & first(2)},
    "a shape": {"keep_op": shape(3, None), "keep_module": kind("module_exit") & dtype(torch.float32)},
    "by grad mode": {"keep_op": op("*") & grad_enabled(), "keep_module": kind("module_exit") & ~grad_enabled()},
    "by place": {"keep_op": inside("**.0**") | op("relu"), "keep_module": entry("") & module("**1**")},
    "by phase": {"keep_op": op("linear", "conv2d") & phase("b")},
    "attached": {"keep_op": op("linear", "conv2d", "tanh"), "capture": CaptureSpec(keep_grad=True)},
    "cast": {"keep_op": op("linear", "relu"), "capture": CaptureSpec(dtype=torch.float64, transform=torch.sum)},
    "parents": {"keep_op": op("linear", "relu"), "track_parents": True},
    "sources": {"keep_op": kind("input", "buffer") | op("linear"), "include_source_events": True},
}
OPAQUE_PREDICATES: dict[str, dict[str, Any]] = {
    "asked of ops": {"keep_op": lambda ctx: ctx.layer_type_num % 2 == 0},
    "asked of all": {"keep_op": lambda ctx: ctx.op_index % 3 == 1, "keep_module": lambda ctx: ctx.event_index % 2 == 0},
    "asked of the past": {"keep_op": lambda ctx: any(e.layer_type == "linear" for e in ctx.recent_ops[-2:])},
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # for such small tensors more only get in each other's way
    yield
    torch.set_num_threads(threads)


def run(make: Callable[[], nn.Module], x: Tensor, engine: str, options: dict[str, Any], passes: int = PASSES) -> Any:
    """Some passes of a new model, with changes of phase and grad mode; the recording and the outputs."""
    with seeded(1):
        model = make()
    if engine == "compiled":  # nothing is gained by a quick backend here
        torch._dynamo.reset()
        model = torch.compile(model, backend="eager")
    outputs = []
    with Recorder(model, engine=engine, **options) as rec:
        for index in range(passes):
            grad = index < 4 or rec.options.capture.keep_grad
            with seeded(index), torch.set_grad_enabled(grad), rec.phase("ab"[index // 2 % 2]):
                outputs.append(model(x.clone() + index % 3))
    return rec.recording, outputs


def popped(make: Callable[[], nn.Module], x: Tensor, engine: str, options: dict[str, Any]) -> list[Any]:
    """What is taken after each pass without gradients, in a loop that then writes into what it gave and got."""
    with seeded(1):
        model = make()
    taken = []
    with torch.no_grad(), Recorder(model, engine=engine, **options) as rec:
        for index in range(PASSES):
            with seeded(index), rec.phase("ab"[index // 2 % 2]):
                given = x.clone() + index % 3
                out = model(given)
            taken.append(rec.pop())
            for value in (given, *_flat(out)):
                if not isinstance(value, nn.Parameter):
                    value.fill_(-100)
    return taken


def assert_equivalent(make: Callable[[], nn.Module], x: Tensor, engine: str, options: dict[str, Any]) -> None:
    (expected, outputs), (found, others) = (run(make, x, each, options) for each in ("eager", engine))
    assert_same_recordings(found, expected, loose=engine in LOOSE)
    for one, other in zip(_flat(outputs), _flat(others), strict=True):
        assert torch.allclose(one, other) if engine in LOOSE else same_bits(one, other)


def _flat(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for item in items for tensor in _flat(item)]


@pytest.mark.filterwarnings("ignore::fastrec._errors.FastrecWarning")
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("engine", ENGINES)
def test_built_in_predicates_give_the_same_records(engine: str, name: str) -> None:
    make, size = MODELS[name]
    for options in list(PREDICATES.values())[:: 2 if name in HEAVY else 1]:
        assert_equivalent(make, torch.randn(size), engine, options)


@pytest.mark.filterwarnings("ignore::fastrec._errors.FastrecWarning")
@pytest.mark.parametrize("name", ["everything", "some passes", "a history", "attached", "cast", "parents", "sources"])
def test_built_in_predicates_give_the_same_records_of_compiled_models(name: str) -> None:
    make, size = MODELS["attention" if name == "everything" else "shared"]
    assert_equivalent(make, torch.randn(size), "compiled", PREDICATES[name])


@pytest.mark.filterwarnings("ignore::fastrec._errors.FastrecWarning")
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("engine", [engine for engine in ENGINES if engine in OPAQUE])
def test_callables_give_the_same_records(engine: str, name: str) -> None:
    make, size = MODELS[name]
    for options in OPAQUE_PREDICATES.values():
        assert_equivalent(make, torch.randn(size), engine, options)


@pytest.mark.filterwarnings("ignore::fastrec._errors.FastrecWarning")
@pytest.mark.parametrize("engine", ENGINES)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(model=made_models(), options=st.sampled_from([*PREDICATES.values()]))
def test_made_models_give_the_same_records(engine: str, model: nn.Module, options: dict[str, Any]) -> None:
    if options.get("capture", CaptureSpec()).keep_grad:
        options = {**options, "capture": CaptureSpec()}  # writes may forbid the backward pass, not the recording
    assert_equivalent(lambda: copy.deepcopy(model), torch.randn(3, 4), engine, options)


@pytest.mark.filterwarnings("ignore::fastrec._errors.FastrecWarning")
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_taken_after_each_pass_is_the_same(engine: str, name: str) -> None:
    make, size = MODELS[name]
    x = torch.randn(size)
    for key in ("one op type", "all modules", "some passes", "by place"):
        for one, other in zip(*(popped(make, x, each, PREDICATES[key]) for each in ("eager", engine)), strict=True):
            assert_same_recordings(one, other)


@pytest.mark.filterwarnings("ignore::fastrec._errors.FastrecWarning")
@pytest.mark.parametrize("engine", ENGINES)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(model=made_models(), options=st.sampled_from([PREDICATES["one op type"], PREDICATES["modules by class"]]))
def test_what_is_taken_after_each_pass_of_made_models_is_the_same(
    engine: str, model: nn.Module, options: dict[str, Any]
) -> None:
    x = torch.randn(3, 4)
    taken = [popped(lambda: copy.deepcopy(model), x, each, options) for each in ("eager", engine)]
    for one, other in zip(*taken, strict=True):
        assert_same_recordings(one, other)


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(model=made_models())
def test_made_models_give_the_same_records_compiled(model: nn.Module) -> None:
    x, options = torch.randn(3, 4), PREDICATES["everything"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        (expected, outputs), (found, others) = (
            run(lambda: copy.deepcopy(model), x, engine, options, passes=2) for engine in ("eager", "compiled")
        )
    # What compiled code does not compute (its value is used nowhere), or what runs between two graphs.
    left_out = any("not recorded, because it falls between" in str(warning.message) for warning in caught)
    known = {facts["label"]: facts for facts in map(facts_of, found)}
    kept = [record for record in expected if facts_of(record)["label"] in known]
    assert left_out or len(kept) == len(expected)
    assert [facts_of(record) for record in kept] == [facts_of(record) for record in found]
    for mine, theirs in zip(found, kept, strict=True):
        assert torch.allclose(mine.activation, theirs.activation, equal_nan=True), mine
    for one, other in zip(_flat(outputs), _flat(others), strict=True):
        assert torch.allclose(one, other, equal_nan=True)
