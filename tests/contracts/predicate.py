"""What every predicate promises, whatever it asks. Inherited by the tests of each kind of predicate."""

import copy
import pickle

import pytest
import torch

from fastrec import predicates as public
from fastrec.events.capture import CaptureSpec
from fastrec.events.context import FIELDS, RecordContext
from fastrec.predicates import op, parse
from fastrec.predicates._answers import Changes
from fastrec.predicates._base import PredicateBase
from tests.helpers.predicate_events import event, site_of

NAMESPACE = {**vars(public), "torch": torch}

EVENTS = [
    event("op", "relu"),
    event("op", "relu", stack=()),
    event("op", "conv2d", stack=(("", "Net"), ("encoder", "Sequential")), entry_pass=7, phase="rollout"),
    event("op", "add", recent=("conv2d", "relu"), shape=(4, 64), dtype="bfloat16", grad=False, entry="actor"),
    event("module_enter", "linear", stack=(("", "Net"), ("actor", "Linear")), entry_pass=10),
    event("module_exit", "linear", stack=(("", "Net"), ("actor", "Linear")), shape=()),
    event("input", "input", shape=(64,)),
    event("buffer", "buffer", stack=(("", "Net"), ("encoder.0", "BatchNorm2d"))),
]


class Spy:
    """A context that shows the fields that a predicate says it reads."""

    def __init__(self, ctx: RecordContext, allowed: frozenset[str]) -> None:
        self._ctx = ctx
        self._allowed = allowed

    def __getattr__(self, name: str) -> object:
        assert name in self._allowed, f"read {name} without saying so"
        return getattr(self._ctx, name)


def assert_same_decision(got: object, expected: object) -> None:
    assert type(got) is type(expected)
    assert got == expected


def assert_narrow_agrees(predicate: PredicateBase, ctx: RecordContext) -> None:
    residual = predicate.narrow(site_of(ctx))
    assert_same_decision(residual.decide(ctx), predicate.decide(ctx))
    assert residual.reads <= predicate.reads
    assert residual.history <= predicate.history
    assert residual.narrow(site_of(ctx)) == residual


def assert_reads_are_honest(predicate: PredicateBase, ctx: RecordContext) -> None:
    assert predicate.reads <= set(FIELDS)
    assert_same_decision(predicate.decide(Spy(ctx, predicate.reads)), predicate.decide(ctx))


def assert_decision_is_checked(predicate: PredicateBase, ctx: RecordContext) -> None:
    decision = predicate.decide(ctx)
    assert decision is True or decision is False or isinstance(decision, Changes | CaptureSpec)
    assert predicate.is_plain <= isinstance(decision, bool)
    hash(decision)
    called = predicate(ctx)
    assert called is decision if isinstance(decision, bool) else isinstance(called, CaptureSpec)


def assert_kinds_are_sound(predicate: PredicateBase, ctx: RecordContext) -> None:
    if predicate.decide(ctx) is not False:
        assert predicate.may_keep_kind(ctx.kind)


def assert_prints_back(predicate: PredicateBase) -> None:
    text = repr(predicate)
    for again in (parse(text), eval(text, dict(NAMESPACE))):
        assert again == predicate
        assert hash(again) == hash(predicate)
        assert repr(again) == text


CHECKS = [assert_narrow_agrees, assert_reads_are_honest, assert_decision_is_checked, assert_kinds_are_sound]


class PredicateContract:
    """Inherited by the tests of each kind of predicate."""

    examples: list[PredicateBase]
    prints_back = True

    @pytest.mark.parametrize("check", CHECKS)
    def test_each_event(self, check) -> None:
        for predicate in self.examples:
            for ctx in EVENTS:
                check(predicate, ctx)

    def test_prints_back(self) -> None:
        for predicate in self.examples:
            if self.prints_back:
                assert_prints_back(predicate)
            else:
                with pytest.raises(ValueError, match="can't bring back"):
                    parse(repr(predicate))

    def test_pickles_and_copies(self) -> None:
        for predicate in self.examples:
            for again in (pickle.loads(pickle.dumps(predicate)), copy.deepcopy(predicate)):
                assert again == predicate
                assert [again.decide(ctx) for ctx in EVENTS] == [predicate.decide(ctx) for ctx in EVENTS]

    def test_differs_from_others_and_is_frozen(self) -> None:
        for predicate in self.examples:
            assert predicate != op("something else")
            assert predicate != "a string"
            assert predicate in {predicate}
            with pytest.raises(AttributeError):
                predicate.globs = ()

    def test_has_no_truth_value(self) -> None:
        for predicate in self.examples:
            with pytest.raises(ValueError, match="no truth value of its own: join predicates with & | ~"):
                bool(predicate)
