"""How predicates join: what is kept, how it is kept, what is left after narrowing, and how it prints."""

import pytest
import torch
from hypothesis import given

from fastrec._errors import OptionError, PredicateError
from fastrec.events.capture import CaptureSpec
from fastrec.events.context import RecordContext
from fastrec.predicates import (
    ALWAYS,
    NEVER,
    after,
    entry,
    every,
    first,
    grad_enabled,
    inside,
    module,
    module_type,
    op,
    phase,
    structural,
)
from fastrec.predicates._base import Constant, Opaque, PredicateBase
from tests.predicate_events import event, events, predicates, site_of
from tests.stable_ids import stable

RELU = event("op", "relu")
relu, conv, ten = op("relu"), op("conv2d"), every(10)


def half(ctx: RecordContext) -> CaptureSpec:
    return CaptureSpec(dtype=torch.float16)


def always(ctx: RecordContext) -> bool:
    return True


def keeps(predicate: PredicateBase, ctx: RecordContext) -> bool:
    return predicate.decide(ctx) is not False


def same_everywhere(left: PredicateBase, right: PredicateBase, ctx: RecordContext) -> bool:
    return keeps(left, ctx) == keeps(right, ctx)


@given(predicates, predicates, predicates, events)
def test_laws_of_boolean_algebra(a: PredicateBase, b: PredicateBase, c: PredicateBase, ctx: RecordContext) -> None:
    assert keeps(a & b, ctx) == (keeps(a, ctx) and keeps(b, ctx))
    assert keeps(a | b, ctx) == (keeps(a, ctx) or keeps(b, ctx))
    assert keeps(~a, ctx) == (not keeps(a, ctx))
    assert same_everywhere(~(a & b), ~a | ~b, ctx)
    assert same_everywhere(a & (b | c), (a & b) | (a & c), ctx)
    assert same_everywhere(a | (a & b), a, ctx)
    assert (a & b) & c == a & (b & c)
    assert (a | b) | c == a | (b | c)


@given(predicates, events)
def test_negation_says_nothing_about_how(a: PredicateBase, ctx: RecordContext) -> None:
    assert isinstance((~a).decide(ctx), bool)
    assert (~~a).decide(ctx) is keeps(a, ctx)


@given(predicates, events)
def test_never_and_always_are_neutral(a: PredicateBase, ctx: RecordContext) -> None:
    site = site_of(ctx)
    assert (a | NEVER).narrow(site) == (NEVER | a).narrow(site) == a.narrow(site)
    assert (a & ALWAYS).narrow(site) == (ALWAYS & a).narrow(site) == a.narrow(site)
    assert (a & NEVER).narrow(site) is NEVER


@pytest.mark.parametrize(
    ("predicate", "decision"),
    [
        (relu.with_(dtype=torch.float16) | ten.with_(keep_grad=True), {"dtype": torch.float16}),
        (conv.with_(dtype=torch.float16) | ten.with_(keep_grad=True), {"keep_grad": True}),
        (relu | ten.with_(keep_grad=True), True),
        (
            relu.with_(dtype=torch.float16) & ten.with_(keep_grad=True),
            {"dtype": torch.float16, "keep_grad": True},
        ),
        (relu.with_(dtype=torch.float16) & ten.with_(dtype=torch.bfloat16), {"dtype": torch.bfloat16}),
        (relu.with_(dtype=torch.float16) & ten, {"dtype": torch.float16}),
        (relu.with_(dtype=torch.float16).with_(dtype=torch.bfloat16), {"dtype": torch.bfloat16}),
        (
            (relu.with_(device="cpu") & ten).with_(dtype=torch.bfloat16),
            {"device": "cpu", "dtype": torch.bfloat16},
        ),
        (relu.with_(keep_grad=True) & half, CaptureSpec(dtype=torch.float16)),
        (half & relu.with_(keep_grad=True), CaptureSpec(dtype=torch.float16, keep_grad=True)),
        ((relu & half).with_(dtype=torch.bfloat16), CaptureSpec(dtype=torch.bfloat16)),
        (relu.with_(keep_grad=True) & always, {"keep_grad": True}),
        (~conv.with_(keep_grad=True), True),
    ],
    ids=stable,
)
def test_how_joined_predicates_keep(predicate: PredicateBase, decision: object) -> None:
    assert predicate.decide(RELU) == decision
    assert predicate.narrow(site_of(RELU)).decide(RELU) == decision


def test_calling_gives_a_whole_capture() -> None:
    assert relu(RELU) is True
    assert conv(RELU) is False
    assert relu.with_(dtype=torch.float16)(RELU) == CaptureSpec(dtype=torch.float16)


def test_functions_join_on_both_sides() -> None:
    assert relu & always == relu & Opaque(always)
    assert always & relu == Opaque(always) & relu
    assert always | relu == Opaque(always) | relu


def test_later_parts_are_not_asked_in_vain() -> None:
    def explodes(ctx: RecordContext) -> bool:
        raise AssertionError("asked")

    assert (conv & explodes).decide(RELU) is False
    assert (relu | explodes).decide(RELU) is True
    assert (explodes & conv).narrow(site_of(RELU)) is NEVER
    assert (relu | structural(explodes)).narrow(site_of(RELU)) is ALWAYS


@pytest.mark.parametrize(
    ("predicate", "rest"),
    [
        (relu, ALWAYS),
        (conv, NEVER),
        (relu & ten, ten),
        (relu & ten & ~grad_enabled(), ten & ~grad_enabled()),
        (conv | ten, ten),
        (relu | ten, ALWAYS),
        (ten | relu, ALWAYS),
        (~relu, NEVER),
        (~(conv & ten), ALWAYS),
        (~(relu & ten), ~ten),
        (~~(relu & ten), ten),
        ((relu & ten) | (op("re*") & ten), ten),
        ((relu & ten) & (op("re*") & ten), ten),
        (relu.with_(dtype=torch.float16) & ten, ten.with_(dtype=torch.float16)),
        (
            relu.with_(device="cpu") & ten.with_(dtype=torch.float16),
            ten.with_(dtype=torch.float16, device="cpu"),
        ),
        ((relu & ten).with_(dtype=torch.float16), ten.with_(dtype=torch.float16)),
        (relu.with_(dtype=torch.float16), ALWAYS.with_(dtype=torch.float16)),
        (relu & module("") & inside(""), ALWAYS),
        (ten | relu.with_(keep_grad=True), ten | ALWAYS.with_(keep_grad=True)),
        (ten | relu.with_(keep_grad=True) | first(3), ten | ALWAYS.with_(keep_grad=True)),
        (ten.with_(keep_grad=True) | relu, ten.with_(keep_grad=True) | ALWAYS),
        (ten.with_(keep_grad=True) | (relu & ten.with_(keep_grad=True)), ten.with_(keep_grad=True)),
        (~(relu & ten.with_(keep_grad=True)), ~ten),
        (~~(relu & Opaque(half)), ~~Opaque(half)),
        (structural(half), Constant(CaptureSpec(dtype=torch.float16))),
        (structural(always) & ten, ten),
        (relu & always, Opaque(always)),
    ],
    ids=stable,
)
def test_what_is_left_at_a_relu(predicate: PredicateBase, rest: PredicateBase) -> None:
    assert predicate.narrow(site_of(RELU)) == rest


def test_a_structural_function_is_asked_once_per_site() -> None:
    asked = []

    def deep(ctx: RecordContext) -> bool:
        asked.append(ctx.site)
        return True

    rest = (structural(deep) & ten).narrow(site_of(RELU))
    for _ in range(5):
        rest.decide(RELU)
    assert asked == ["/relu"]


@pytest.mark.parametrize(
    ("predicate", "text"),
    [
        (op("relu", "conv*") & ~inside("head.*"), "op('relu', 'conv*') & ~inside('head.*')"),
        ((relu | conv) & ten, "(op('relu') | op('conv2d')) & every(10)"),
        (relu | conv & ten, "op('relu') | op('conv2d') & every(10)"),
        (~(relu | conv), "~(op('relu') | op('conv2d'))"),
        (~relu.with_(dtype=torch.float16), "~op('relu').with_(dtype=torch.float16)"),
        ((~relu).with_(dtype=torch.float16), "(~op('relu')).with_(dtype=torch.float16)"),
        (
            (relu & ten).with_(device=torch.device("cuda:1"), keep_grad=True),
            "(op('relu') & every(10)).with_(keep_grad=True, device=torch.device('cuda:1'))",
        ),
        (ALWAYS.with_(keep_grad=True), "ALWAYS.with_(keep_grad=True)"),
        (NEVER.with_(keep_grad=True), "NEVER"),
        (relu.with_(), "op('relu')"),
    ],
)
def test_prints_as_it_is_written(predicate: PredicateBase, text: str) -> None:
    assert repr(predicate) == text


def test_a_function_prints_with_its_name_and_place() -> None:
    assert repr(relu & half).startswith(
        "op('relu') & function('test_predicates_algebra.half', 'test_predicates_algebra.py:"
    )
    assert repr(structural(half)).startswith("structural(function('test_predicates_algebra.half', ")
    assert repr(relu.with_(transform=torch.relu)) == (
        "op('relu').with_(transform=function('torch._VariableFunctionsClass.relu'))"
    )


def test_reads_and_history_are_those_of_all_parts() -> None:
    predicate = relu & (after("conv2d", within=3) | ~phase("train")).with_(keep_grad=True)
    assert predicate.reads == {"kind", "layer_type", "recent_ops", "phase"}
    assert predicate.history == 3
    assert relu.history == 0


@pytest.mark.parametrize(
    ("predicate", "kinds"),
    [
        (relu, {"op"}),
        (relu & module("*"), {"op"}),
        (module("*"), {"op", "module_exit", "input", "buffer"}),
        (~relu, {"op", "module_enter", "module_exit", "input", "buffer"}),
        (ten, {"op", "module_enter", "module_exit", "input", "buffer"}),
        (relu & Opaque(always), {"op"}),
        (structural(half), {"op", "module_enter", "module_exit", "input", "buffer"}),
        (NEVER, set()),
    ],
    ids=stable,
)
def test_kinds_that_could_be_kept(predicate: PredicateBase, kinds: set[str]) -> None:
    all_kinds = ("op", "module_enter", "module_exit", "input", "buffer")
    assert {kind for kind in all_kinds if predicate.may_keep_kind(kind)} == kinds


def test_patterns_are_listed_with_their_matchers() -> None:
    predicate = (op("relu", "conv*") & ~inside("head.*")) | module("encoder").with_(keep_grad=True) & ten
    listed = [(what, pattern) for what, pattern, _ in predicate.patterns()]
    assert listed == [("op", "relu"), ("op", "conv*"), ("module", "head.*"), ("module", "encoder")]
    matchers = [matches for _, _, matches in predicate.patterns()]
    assert [matches("conv2d") for matches in matchers] == [False, True, False, False]
    others = module_type("Linear") & phase("rollout") | ~entry("actor")
    assert list(others.patterns()) == []
    assert [found[:2] for found in others.patterns("module_type", "entry")] == [
        ("module_type", "Linear"),
        ("entry", "actor"),
    ]


def test_changes_are_checked() -> None:
    with pytest.raises(OptionError, match=r"'dtyp' is not a field of CaptureSpec; did you mean 'dtype'\?"):
        relu.with_(dtyp=torch.float16)
    with pytest.raises(OptionError, match="gradients flow through floating"):
        relu.with_(keep_grad=True, dtype=torch.int8)
    with pytest.raises(OptionError, match="gradients flow through floating"):
        relu.with_(keep_grad=True).with_(dtype=torch.int8)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        (lambda: relu and ten, r"op\('relu'\) has no truth value of its own: join predicates with & \| ~"),
        (lambda: not relu, "no truth value of its own"),
        (lambda: relu & "conv2d", r"a predicate's & got 'conv2d' \(str\); give a predicate such as op\('relu'\)"),
        (lambda: True | relu, r"a predicate's \| got True \(bool\)"),
        (lambda: relu & torch.nn.Linear, r"got the class Linear; module_type\(Linear\) selects by it"),
        (lambda: relu & op, r"a predicate's & got op itself; call it: op\(\.\.\.\)"),
    ],
)
def test_wrong_ways_to_join(expression, message: str) -> None:
    with pytest.raises(PredicateError, match=message):
        expression()
