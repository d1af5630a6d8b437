"""Every predicate, and any expression made of them, keeps the contract."""

import copy
import pickle

import torch
from hypothesis import example, given, reject, settings
from torch import nn

from fastrec._errors import OptionError
from fastrec.events.capture import CaptureSpec
from fastrec.events.context import RecordContext
from fastrec.predicates import (
    ALWAYS,
    NEVER,
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
    structural,
)
from fastrec.predicates._base import Constant, Opaque, PredicateBase
from tests.contracts.predicate import CHECKS, PredicateContract, assert_prints_back
from tests.helpers.predicate_events import (
    KINDS,
    as_an_op_would,
    as_metadata,
    event,
    events,
    in_a_module,
    on_even_passes,
    predicates,
    printed_predicates,
    short_when_op,
    site_of,
)


class TestOp(PredicateContract):
    examples = [op("relu"), op("relu", "conv*"), op("*")]


class TestKind(PredicateContract):
    examples = [kind(k) for k in KINDS] + [kind("input", "buffer")]


class TestAfter(PredicateContract):
    examples = [after("conv2d"), after("relu"), after("conv*", "add", within=2)]


class TestModule(PredicateContract):
    examples = [module(""), module("*"), module("**"), module("actor", "enc*")]


class TestModuleInput(PredicateContract):
    examples = [module_input("actor"), module_input("*")]


class TestModuleType(PredicateContract):
    examples = [module_type("Linear", nn.Sequential), module_type("*")]


class TestInside(PredicateContract):
    examples = [inside(""), inside("encoder*"), inside("actor")]


class TestShape(PredicateContract):
    examples = [shape(), shape(None, 64), shape(..., 64), shape(4, ...), shape(...)]


class TestDtype(PredicateContract):
    examples = [dtype(torch.float32), dtype("bfloat16", torch.int64)]


class TestEvery(PredicateContract):
    examples = [every(1), every(10)]


class TestFirst(PredicateContract):
    examples = [first(1), first(8)]


class TestPhase(PredicateContract):
    examples = [phase("rollout"), phase("*", "train")]


class TestEntry(PredicateContract):
    examples = [entry("actor"), entry("")]


class TestGradEnabled(PredicateContract):
    examples = [grad_enabled()]


class TestConstants(PredicateContract):
    examples = [ALWAYS, NEVER, ALWAYS.with_(keep_grad=True)]


class TestJoined(PredicateContract):
    examples = [
        op("relu") & every(10),
        op("relu") | module("actor") | ~every(2),
        ~(op("relu") | op("conv*")),
        (op("relu") & every(7)).with_(dtype=torch.bfloat16, device=torch.device("cpu")),
    ]


class TestOpaque(PredicateContract):
    examples = [Opaque(on_even_passes), Opaque(as_metadata), Opaque(as_an_op_would), op("relu") & on_even_passes]
    prints_back = False


class TestStructural(PredicateContract):
    examples = [structural(in_a_module), structural(as_metadata), structural(short_when_op)]
    prints_back = False


def half(ctx: RecordContext) -> CaptureSpec:
    return CaptureSpec(dtype=torch.float16)


@settings(max_examples=400)
@given(predicates, events)
# Parts that are equal only once chains inside of other parts have been taken apart.
@example(shape() & (shape() & after("relu")).with_(dtype=torch.float16), event())
@example((op("*") & (every(2) | first(3))) | every(2), event())
# Constants that come to light in a chain inside of another.
@example((op("*") & (every(2) | ALWAYS.with_(keep_grad=True))) | first(3), event())
@example((NEVER | (every(2) & structural(half))) & first(2).with_(keep_grad=True), event())
@example(~(~every(2)).with_(keep_grad=True), event())
def test_any_expression_keeps_the_contract(predicate: PredicateBase, ctx: RecordContext) -> None:
    try:
        for check in CHECKS:
            check(predicate, ctx)
    except OptionError:
        reject()  # a function's capture may not fit a `with_` around it, which only shows when both are joined


@settings(max_examples=200)
@given(printed_predicates)
def test_any_expression_prints_back(predicate: PredicateBase) -> None:
    assert_prints_back(predicate)


def test_constants_are_the_same_object_after_pickling() -> None:
    assert pickle.loads(pickle.dumps(NEVER)) is NEVER
    assert copy.deepcopy(ALWAYS) is ALWAYS


def test_a_residual_without_fields_is_a_constant() -> None:
    residual = structural(as_metadata).narrow(site_of(event("op")))
    assert residual == Constant(CaptureSpec(save_activation=False))
    assert not residual.reads
