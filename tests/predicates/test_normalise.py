"""What the options keep_op and keep_module accept."""

import functools

import pytest
import torch
from torch import nn

from fastrec._errors import PredicateError
from fastrec.predicates import NEVER, kind, module, op
from fastrec.predicates._base import Opaque
from fastrec.predicates._normalise import normalise
from tests.helpers.predicate_events import event
from tests.helpers.stable_ids import stable


def wide(ctx, least: int = 3) -> bool:
    return max(ctx.tensor_shape) >= least


class Chooser:
    def __call__(self, ctx) -> bool:
        return ctx.kind == "op"

    def choose(self, ctx) -> bool:
        return True


CHOOSER = Chooser()


@pytest.mark.parametrize(
    ("given", "keep_op", "keep_module"),
    [
        (None, NEVER, NEVER),
        (True, kind("op"), kind("module_exit")),
        ("relu", op("relu"), module("relu")),
        (["relu", "conv*"], op("relu", "conv*"), module("relu", "conv*")),
        (("relu",), op("relu"), module("relu")),
        ({"tanh", "conv2d", "relu"}, op("conv2d", "relu", "tanh"), module("conv2d", "relu", "tanh")),
        (op("relu") & module("x"), op("relu") & module("x"), op("relu") & module("x")),
        (wide, Opaque(wide), Opaque(wide)),
        (CHOOSER, Opaque(CHOOSER), Opaque(CHOOSER)),
        (CHOOSER.choose, Opaque(CHOOSER.choose), Opaque(CHOOSER.choose)),
        (all, Opaque(all), Opaque(all)),
    ],
    ids=stable,
)
def test_what_is_accepted(given: object, keep_op: object, keep_module: object) -> None:
    assert normalise(given, option="keep_op") == keep_op
    assert normalise(given, option="keep_module") == keep_module


def test_a_partial_function_is_asked() -> None:
    predicate = normalise(functools.partial(wide, least=4), option="keep_op")
    assert predicate(event(shape=(2, 3))) is False
    assert predicate(event(shape=(2, 4))) is True
    assert repr(predicate).startswith("function('tests.predicates.test_normalise.wide', 'test_normalise.py:")


def test_none_is_the_constant_itself() -> None:
    assert normalise(None, option="keep_op") is NEVER


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (False, r"keep_op=False keeps nothing; leave keep_op out, or give 'relu', \['relu', 'conv\*'\]"),
        ([], r"keep_op=\[\] keeps nothing; leave keep_op out"),
        (set(), r"keep_op=set\(\) keeps nothing"),
        (3, r"keep_op got 3 \(int\); give a predicate, a function of the context, 'relu', .*, or True"),
        ({"relu": True}, r"keep_op got \{'relu': True\} \(dict\)"),
        (["relu", op("tanh")], r"keep_op got a list that holds op\('tanh'\) \(Op\); a list holds 'relu', .* with \|"),
        (nn.ReLU(), r"keep_op got a module \(ReLU\); the ops that run in it are inside\(the module\), .* keep_module="),
        (nn.ReLU, r"keep_op got the class ReLU; the ops .* are module_type\(ReLU\), .* keep_module="),
        (Chooser, r"keep_op got the class Chooser; give an instance"),
        (op, r"keep_op got op itself; call it: op\(\.\.\.\)"),
        (lambda: True, r"keep_op got a function with the arguments \(\); it is called with one, the context"),
        (torch.zeros(1), r"keep_op got tensor\(\[0\.\]\) \(Tensor\)"),
        ("", r"op\(''\) names no op type"),
    ],
)
def test_what_is_refused(given: object, message: str) -> None:
    with pytest.raises(PredicateError, match=message):
        normalise(given, option="keep_op")


def test_refusals_name_the_option() -> None:
    with pytest.raises(PredicateError, match=r"keep_module=False .* or give 'encoder\.\*' \(module addresses\)"):
        normalise(False, option="keep_module")
