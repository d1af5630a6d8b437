"""Conditions: where a value of the pass steered it, and which operations computed that value."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Literal

import msgspec
import torch

from fastrec.graph._raw import Op, Stack, Truth
from fastrec.graph._source import Span, Test, TestKind, span_of, test_at, verdict

Branch = Literal["then", "else"]
Branches = Mapping[int, tuple[tuple[int, Branch], ...]]


class Condition(msgspec.Struct, frozen=True):
    """Python tested a value of the pass.

    ``layer_label`` is the operation whose value was tested. ``kind`` and ``line`` tell the test in the source,
    ``"bool"`` where the source tells of none. ``branch`` is the one that was taken, None where that can't be told.
    ``within`` numbers the conditions in whose taken branches this one was tested, outermost first.
    """

    number: int
    layer_label: str
    kind: TestKind | Literal["bool"]
    value: object
    branch: Branch | None
    file: str
    line: int
    within: tuple[int, ...] = ()


class _Tested(msgspec.Struct):
    """A test that was run, where, and the branch that it led to."""

    truth: Truth
    test: Test | None
    branch: Branch | None
    span: Span | None

    def taken(self) -> Span | None:
        if self.test is None or self.branch is None:
            return None
        return self.test.then if self.branch == "then" else self.test.otherwise


class Conditions:
    """What is known of the conditions of a pass; a sequence of the tests that Python made.

    ``terminal_bools`` are the single booleans that no operation reads; ``tested`` the operations whose values are
    conditions: those, and what Python itself tested. ``evaluating`` are the operations that take part in evaluating a
    condition and lead to no output, ``starts`` those of them that read from outside. After the paper, Implementation.
    """

    def __init__(
        self,
        ops: Sequence[Op],
        order: Sequence[int],
        children: Mapping[int, Sequence[int]],
        to_output: Sequence[int],
        truths: Iterable[Truth],
        label: Callable[[int], str],
    ) -> None:
        self._ops = ops
        self._label = label
        self._runs = [run for truth in truths if (run := _tested(truth)) is not None]
        self.terminal_bools = {i for i in order if not children.get(i) and _is_single_bool(ops[i])}
        self.tested = sorted(self.terminal_bools | {run.truth.op for run in self._runs})
        self._sought = False
        self.evaluating: set[int] = set()
        self.starts: set[int] = set()
        for index in self.tested:
            self._trace(to_output, index)

    @classmethod
    def known(cls, conditions: Iterable[Condition], ops: Mapping[str, Iterable[int]], branches: Branches) -> Conditions:
        """Conditions as they were found before, by those who had the source; ``ops`` are its sets of operations."""
        found = cls((), (), {}, (), (), str)
        found.terminal_bools, found.tested = set(ops["terminal_bools"]), list(ops["tested"])
        found.evaluating, found.starts = set(ops["evaluating"]), set(ops["starts"])
        vars(found).update(branches=dict(branches), _all=list(conditions))
        return found

    def _trace(self, to_output: Sequence[int], index: int) -> None:
        """Walk back from a condition to where it leaves the way to the output."""
        ops = self._ops
        todo = [index]
        while todo:
            current = todo.pop()
            if to_output[current] or current in self.evaluating or ops[current].kind != "op":
                continue
            self.evaluating.add(current)
            parents = ops[current].parents
            if not parents or any(to_output[parent] or ops[parent].kind != "op" for parent in parents):
                self.starts.add(current)
            todo.extend(parents)

    @cached_property
    def branches(self) -> dict[int, tuple[tuple[int, Branch], ...]]:
        """For each operation the branches that it ran in, as (number of the condition, branch), outermost first."""
        self._find_branches()
        return {
            op.index: inside
            for op in self._ops
            if op.kind == "op" and (inside := self._inside(op.call.stack, op.index))
        }

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Condition]:
        return iter(self._all)

    def __getitem__(self, number: int) -> Condition:
        return self._all[number]

    @cached_property
    def _all(self) -> list[Condition]:
        self._find_branches()
        found = []
        for number, run in enumerate(self._runs):
            truth, span = run.truth, run.span
            within = tuple(n for n, _ in self._inside(truth.stack, truth.at) if n != number)
            kind: TestKind | Literal["bool"] = run.test.kind if run.test else "bool"
            file = truth.stack[1].co_filename if truth.stack else ""
            line = run.test.span.line if run.test else span.line if span else 0
            found.append(Condition(number, self._label(truth.op), kind, truth.value, run.branch, file, line, within))
        return found

    def _find_branches(self) -> None:
        """Tell from what ran afterwards which branch was taken, where the tested value alone does not."""
        if self._sought:
            return
        self._sought = True
        for run in self._runs:
            if run.branch is None and run.test is not None:
                run.branch = self._branch_seen(run)

    def _branch_seen(self, run: _Tested) -> Branch | None:
        stack = run.truth.stack
        assert run.test is not None
        if stack is None:
            return None
        for op in self._ops[run.truth.at :]:
            span = _span_in(op.call.stack, stack)
            if span is None:
                continue
            if not run.test.span.holds(span):
                return None  # the function has gone on behind the test
            if run.test.then is not None and run.test.then.holds(span):
                return "then"
            if run.test.otherwise is not None and run.test.otherwise.holds(span):
                return "else"
        return None

    def _inside(self, stack: Stack | None, at: int) -> tuple[tuple[int, Branch], ...]:
        """The taken branches that a call stands in: of each test its last run before."""
        found: dict[int, tuple[int, Branch]] = {}
        for number, run in enumerate(self._runs):
            if run.truth.at > at or run.test is None or run.truth.stack is None:
                continue
            span = _span_in(stack, run.truth.stack)
            if span is None:
                continue
            taken = run.taken()
            key = id(run.test)
            found.pop(key, None)
            if taken is not None and run.branch is not None and taken.holds(span):
                found[key] = (number, run.branch)
        return tuple(sorted(found.values()))


def _tested(truth: Truth) -> _Tested | None:
    """A look at a value as a test; None for one that is no test as far as the source tells."""
    if truth.stack is None:
        return _Tested(truth, None, None, None) if truth.how == "bool" else None
    _, code, instruction = truth.stack
    found = test_at(code, instruction)
    if found is None:
        return _Tested(truth, None, None, span_of(code, instruction)) if truth.how == "bool" else None
    test, span = found
    came_to = verdict(test, span, truth.value) if truth.how == "bool" else None
    branch: Branch | None = None if came_to is None else "then" if came_to else "else"
    return _Tested(truth, test, branch, span)


def _span_in(stack: Stack | None, where: Stack) -> Span | None:
    """Where a call stands in the function, and the very call of it, that another place of the source belongs to."""
    outside, code, _ = where
    while stack is not None:
        if stack[1] is code and (stack[0] is outside or stack[0] == outside):
            return span_of(code, stack[2])
        stack = stack[0]
    return None


def _is_single_bool(op: Op) -> bool:
    return op.dtype == torch.bool and math.prod(op.shape) == 1 and op.kind == "op"
