"""Conditions: where a value of the pass steered it, and which operations computed that value."""

from __future__ import annotations

import ast
import dis
import linecache
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from types import CodeType
from typing import Literal, NamedTuple

import msgspec
import torch

from fastrec.graph.raw import CapturedOp, Stack, ValueRead

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

    truth: ValueRead
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
        ops: Sequence[CapturedOp],
        order: Sequence[int],
        children: Mapping[int, Sequence[int]],
        to_output: Sequence[int],
        truths: Iterable[ValueRead],
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


def _tested(truth: ValueRead) -> _Tested | None:
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


def _is_single_bool(op: CapturedOp) -> bool:
    return op.dtype == torch.bool and math.prod(op.shape) == 1 and op.kind == "op"


TestKind = Literal["if", "while", "ifexp", "assert", "comprehension", "match"]


class Span(NamedTuple):
    """Lines and columns of a piece of source, both ends included."""

    line: int
    end_line: int
    column: int | None = None
    end_column: int | None = None

    def holds(self, other: Span) -> bool:
        """Whether another span lies inside; by lines alone where columns are not known."""
        if None in (self.column, other.column):
            return self.line <= other.line and other.end_line <= self.end_line
        return (self.line, self.column) <= (other.line, other.column) and (other.end_line, other.end_column) <= (
            self.end_line,
            self.end_column,
        )


class Test(NamedTuple):
    """A test in the source: ``expression`` decides whether ``then`` or ``otherwise`` runs."""

    kind: TestKind
    expression: ast.expr
    span: Span
    then: Span | None
    otherwise: Span | None


def test_at(code: CodeType, instruction: int) -> tuple[Test, Span] | None:
    """The innermost test that an instruction belongs to, and the span of what it tested."""
    span = span_of(code, instruction)
    if span is None:
        return None
    found = [test for test in _tests(code.co_filename) if _span(test.expression).holds(span)]
    return (min(found, key=lambda test: _extent(_span(test.expression))), span) if found else None


def span_of(code: CodeType, instruction: int) -> Span | None:
    """Where an instruction stands in the source; of a jump, where the value stands that it depends on."""
    return _spans(code).get(instruction)


@lru_cache(maxsize=4096)
def _spans(code: CodeType) -> dict[int, Span | None]:
    spans: dict[int, Span | None] = {}
    before: Span | None = None
    line = code.co_firstlineno
    for each in dis.get_instructions(code):
        line = each.starts_line if isinstance(each.starts_line, int) and each.starts_line > 1 else line
        span = _positions(each) or Span(line, line)
        # A jump has the position of the whole statement where it follows the call of a method.
        spans[each.offset] = before if "JUMP" in each.opname and before is not None else span
        before = span
    return spans


def _positions(instruction: dis.Instruction) -> Span | None:
    """Lines and columns, which are known from Python 3.11 on."""
    positions = getattr(instruction, "positions", None)
    if positions is None or positions.lineno is None or positions.end_lineno is None:
        return None
    return Span(positions.lineno, positions.end_lineno, positions.col_offset, positions.end_col_offset)


def verdict(test: Test, span: Span, value: object) -> bool | None:
    """What a test came to, from the value of one thing in it; None where that does not decide it."""
    return _verdict(test.expression, span, value)


def _verdict(expression: ast.expr, span: Span, value: object) -> bool | None:
    if isinstance(expression, ast.UnaryOp) and isinstance(expression.op, ast.Not):
        inner = _verdict(expression.operand, span, value)
        return None if inner is None else not inner
    if isinstance(expression, ast.BoolOp):
        decides = isinstance(expression.op, ast.Or)  # true decides an `or`, false an `and`
        for number, operand in enumerate(expression.values, 1):
            if _span(operand).holds(span):
                inner = _verdict(operand, span, value)
                is_last = number == len(expression.values)
                return inner if is_last or inner is decides else None
        return None
    if isinstance(expression, ast.Compare) and len(expression.ops) > 1:
        return None if value else False
    if isinstance(expression, ast.Call) and _is_bool(expression):
        return bool(value)
    return bool(value) if _span(expression) == span or span.column is None else None


def _is_bool(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Name) and call.func.id == "bool"


@lru_cache(maxsize=256)
def _tests(file: str) -> tuple[Test, ...]:
    source = "".join(linecache.getlines(file))
    try:
        tree = ast.parse(source)
    except SyntaxError:  # no Python source, as for code typed into a shell
        return ()
    return tuple(test for node in ast.walk(tree) for test in _tests_of(node))


def _tests_of(node: ast.AST) -> Iterator[Test]:
    if isinstance(node, ast.If | ast.While):
        kind: TestKind = "if" if isinstance(node, ast.If) else "while"
        yield Test(kind, node.test, _span(node), _block(node.body), _block(node.orelse))
    elif isinstance(node, ast.IfExp):
        yield Test("ifexp", node.test, _span(node), _span(node.body), _span(node.orelse))
    elif isinstance(node, ast.Assert):
        yield Test("assert", node.test, _span(node), None, None)
    elif isinstance(node, ast.comprehension):
        for test in node.ifs:
            yield Test("comprehension", test, _span(test), None, None)
    elif isinstance(node, ast.match_case) and node.guard is not None:
        yield Test("match", node.guard, _span(node.guard), _block(node.body), None)


def _span(node: ast.AST) -> Span:
    assert isinstance(node, ast.expr | ast.stmt)
    end_line = node.end_lineno or node.lineno
    return Span(node.lineno, end_line, node.col_offset, node.end_col_offset)


def _block(body: list[ast.stmt]) -> Span | None:
    if not body:
        return None
    first, last = _span(body[0]), _span(body[-1])
    return Span(first.line, last.end_line, first.column, last.end_column)


def _extent(span: Span) -> tuple[int, int]:
    return span.end_line - span.line, (span.end_column or 0) - (span.column or 0)
