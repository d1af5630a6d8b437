"""What predicates say about wrong arguments and wrong answers."""

import numpy as np
import pytest
import torch
from torch import nn

from fastrec._errors import ContextFieldError, PredicateError
from fastrec.events.capture import CaptureSpec
from fastrec.predicates import (
    NEVER,
    after,
    dtype,
    entry,
    every,
    first,
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
from tests.helpers.predicate_events import event, site_of


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: op(), r"op\(\) needs at least one glob, such as op\('relu'\); '\*' matches all"),
        (lambda: op(3), r"op\(\) takes strings such as op\('relu'\), not 3 \(int\)"),
        (lambda: op(["relu", "tanh"]), r"op\(\) takes its globs one by one: op\('relu', 'tanh'\)"),
        (lambda: op("_"), r"op\('_'\) names no op type; '\*' matches all"),
        (lambda: op("relu", ""), r"op\(''\) names no op type"),
        (lambda: kind(), r"kind\(\) needs at least one of 'op', 'module_enter'"),
        (lambda: kind("module_exits"), r"kind\('module_exits'\) is not a kind of event; did you mean 'module_exit'"),
        (lambda: kind(["op"]), r"kind\(\['op'\]\) is not a kind of event; choose from 'op'"),
        (lambda: after(), r"after\(\) needs at least one glob"),
        (lambda: after("relu", within=0), r"after\(\) got 0; give a whole number of ops to look back at, 1 or more"),
        (lambda: after("relu", within=True), r"after\(\) got True"),
        (lambda: module(), r"module\(\) needs at least one glob, such as module\('encoder.\*'\)"),
        (lambda: module(nn.Linear(1, 1), 3), r"module\(\) takes strings such as module\('encoder.\*'\), not 3"),
        (lambda: module(nn.Linear(1, 1))(event()), r"module\(<Linear>\) holds modules, .* give addresses: module\("),
        (lambda: op(len), r"op\(\) got function\('builtins.len'\), which is no function of torch; give an op type"),
        (lambda: op(torch.is_tensor), r"torch.is_tensor.* returns no new tensor and so is never an event"),
        (lambda: module_input(None), r"module_input\(\) takes strings .* not None \(NoneType\)"),
        (lambda: inside(("a", "b")), r"inside\(\) takes its globs one by one: inside\('a', 'b'\)"),
        (lambda: module_type(), r"module_type\(\) needs at least one glob, such as module_type\('Linear'\)"),
        (lambda: module_type(int), r"module_type\(int\): int is not a subclass of nn.Module"),
        (lambda: module_type(nn.ReLU()), r"got a module; give its class: module_type\(ReLU\), or its address"),
        (lambda: shape((2, 3)), r"shape\(\) got \(2, 3\) \(tuple\); give sizes one by one"),
        (lambda: shape(-1), r"shape\(\) got -1 \(int\)"),
        (lambda: shape(True), r"shape\(\) got True \(bool\)"),
        (lambda: shape(..., 2, ...), r"shape\(\.\.\., 2, \.\.\.\): give \.\.\. at most once"),
        (lambda: dtype(), r"dtype\(\) needs at least one dtype"),
        (lambda: dtype("bfloat61"), r"dtype\('bfloat61'\) is not a torch dtype; did you mean 'bfloat16'"),
        (lambda: dtype(float), r"dtype\(\) takes torch dtypes or their names, not <class 'float'> \(type\)"),
        (lambda: every(0), r"every\(\) got 0; give a whole number of passes, 1 or more"),
        (lambda: every(2.0), r"every\(\) got 2.0"),
        (lambda: first(-1), r"first\(\) got -1; give a whole number of passes"),
        (lambda: phase(), r"phase\(\) needs at least one glob, such as phase\('rollout'\)"),
        (lambda: entry(1), r"entry\(\) takes strings such as entry\('actor.\*'\), not 1"),
        (lambda: structural(3), r"structural\(\) got 3 \(int\); give a predicate"),
        (lambda: structural(lambda: True), r"a function with the arguments \(\); it is called with one, the context"),
        (lambda: structural(lambda a, b: True), r"a function with the arguments \(a, b\)"),
    ],
)
def test_wrong_arguments(wrong, message: str) -> None:
    with pytest.raises(PredicateError, match=message):
        wrong()


async def answers_later(ctx) -> bool:
    return True


def yields_answers(ctx):
    yield True


@pytest.mark.parametrize("function", [answers_later, yields_answers])
def test_functions_that_do_not_return_their_answer(function) -> None:
    with pytest.raises(PredicateError, match="write a plain `def` that returns its answer"):
        NEVER | function


@pytest.mark.parametrize(
    ("answer", "decision"),
    [
        (None, False),
        (np.True_, True),
        (np.False_, False),
        (CaptureSpec(keep_grad=True), CaptureSpec(keep_grad=True)),
        ({"keep_grad": True}, {"keep_grad": True}),
    ],
)
def test_answers_that_a_function_may_give(answer: object, decision: object) -> None:
    got = (NEVER | (lambda ctx: answer)).decide(event())
    assert got == decision
    assert isinstance(got, bool) is isinstance(decision, bool)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            "relu",
            r"returned 'relu' \(str\) for event 'relu_1' at site '/relu'; it has to return True, False, "
            r"None \(not kept\) or a CaptureSpec\. `x and y` and `x or y` return one of their operands: wrap",
        ),
        (1, r"returned 1 \(int\) .* wrap the whole in bool"),
        ([], r"returned \[\] \(list\)"),
        (torch.ones(2) > 0, r"returned a tensor of shape \(2,\) .* becomes a bool with \.item\(\)"),
        (torch.tensor(True), r"returned a tensor of shape \(\)"),
        (
            op("relu"),
            r"returned op\('relu'\) \(Op\) .* call it, a predicate with the context, as in op\('relu'\)\(ctx\)",
        ),
        (CaptureSpec, r"\(StructMeta\) .* It is callable: call it"),
        (
            {"dtyp": None},
            r"for event 'relu_1' at site '/relu': 'dtyp' is not a field of CaptureSpec; did you mean 'dtype'",
        ),
    ],
)
def test_answers_that_are_no_decision(answer: object, message: str) -> None:
    def asked(ctx):
        return answer

    with pytest.raises(PredicateError, match=rf"^function\('tests.predicates.test_errors\.\S+asked', .*{message}"):
        (NEVER | asked)(event())
    with pytest.raises(PredicateError, match=r"^structural\(.*at site '/relu'|for site '/relu'"):
        structural(asked).narrow(site_of(event()))


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (
            lambda ctx: ctx.entry_pass % 10 == 0,
            PredicateError,
            r"read entry_pass, which is not the same in every pass; a structural function may read func_name, .*"
            r"Give the function itself, without structural\(\), to have it asked at every event",
        ),
        (lambda ctx: ctx.tensor_shape, PredicateError, "read tensor_shape"),
        (
            lambda ctx: ctx.module_stack[0].pass_index == 1,
            PredicateError,
            r"read module_stack\[\.\.\.\]\.pass_index.* may read module_address, module_type, aliases\.",
        ),
        (lambda ctx: ctx.layer_typ, ContextFieldError, "no field 'layer_typ'; did you mean 'layer_type'"),
        (lambda ctx: ctx.module_stack[0].address, ContextFieldError, "a module on the stack has no 'address'"),
    ],
)
def test_what_structural_functions_must_not_read(function, error: type[Exception], message: str) -> None:
    ctx = event()
    with pytest.raises(error, match=message):
        structural(function).narrow(site_of(ctx))
    with pytest.raises(error, match=message):
        structural(function)(ctx)


def test_what_a_function_raises_passes_through() -> None:
    def fails(ctx):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        (NEVER | fails)(event())
