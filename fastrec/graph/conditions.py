"""Conditions: where a value of the pass steered it, which operations computed that value, and which branch was taken.

    (condition,) = history.conditions
    condition.layer_label, condition.value        # gt_1_5, False
    condition.kind, condition.line                # "if", and the line of the test in the source

When Python tests a tensor it calls ``bool(x)``, which the tracer sees as a value read with a call stack. What the test
was for, only the source says. So the source of the innermost frame is parsed, the running instruction is located in it
by line and column, and the test is the innermost ``if``, ``while``, ``assert`` and so on around that location.

Often the tested value decides which branch was taken. Where it does not (``x.item() > 3``, all but the last part of
``a and b``), the branch follows from what ran next in the same call of the same function: an operation inside the
``if`` or inside the ``else``.
"""

from __future__ import annotations

import ast
import dis
import linecache
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from types import CodeType
from typing import Literal, NamedTuple

import msgspec
import torch

from fastrec.graph.raw import Capture, CapturedOp, Stack, ValueRead

Branch = Literal["then", "else"]

TestKind = Literal["if", "while", "ifexp", "assert", "comprehension", "match"]

BranchesTaken = Mapping[int, tuple[tuple[int, Branch], ...]]
"""For each operation in any branch: (number of the condition, branch), outermost first."""


class Condition(msgspec.Struct, frozen=True):
    """Python tested a value of the pass.

    ``layer_label`` is the operation whose value was tested. ``kind`` and ``line`` are those of the test in the source;
    ``kind`` is ``"bool"`` if the source shows none. ``branch`` is the one that was taken, None if that is unknown.
    ``within`` are the numbers of the conditions in whose taken branches this one was tested, outermost first.
    """

    number: int
    layer_label: str
    kind: TestKind | Literal["bool"]
    value: object
    branch: Branch | None
    file: str
    line: int
    within: tuple[int, ...] = ()


class Conditions(msgspec.Struct, dict=True, eq=False):
    """What is known of the conditions of a pass; a sequence of the tests that Python made.

    ``terminal_bools`` are the single booleans that no operation reads. ``tested`` are the operations whose values are
    conditions: those, and what Python itself tested. ``evaluating`` are the operations that take part in evaluating a
    condition and lead to no output; ``starts`` are those of them that read from outside. After the paper,
    Implementation. Finding the tests and the branches needs the source, and happens on demand.
    """

    terminal_bools: set[int]
    tested: list[int]
    evaluating: set[int]
    starts: set[int]
    find_tests: Callable[[], Sequence[Condition]]
    find_branches: Callable[[], BranchesTaken]

    @cached_property
    def _tests(self) -> Sequence[Condition]:
        return self.find_tests()

    @cached_property
    def branches(self) -> BranchesTaken:
        """The branches that each operation ran in."""
        return self.find_branches()

    def __len__(self) -> int:
        return len(self._tests)

    def __iter__(self) -> Iterator[Condition]:
        return iter(self._tests)

    def __getitem__(self, number: int) -> Condition:
        return self._tests[number]


def find_conditions(
    capture: Capture,
    order: Sequence[int],
    children: Mapping[int, Sequence[int]],
    to_output: Sequence[int],
    labels: Mapping[int, str],
) -> Conditions:
    """The conditions of a captured pass."""
    ops = capture.ops
    runs = [run for read in capture.value_reads if (run := _test_run(read)) is not None]
    terminal_bools = {i for i in order if not children.get(i) and _is_single_bool(ops[i])}
    tested = sorted(terminal_bools | {run.read.op for run in runs})
    evaluating, starts = _evaluating(ops, tested, to_output)
    finder = _BranchFinder(ops, runs, labels)
    return Conditions(terminal_bools, tested, evaluating, starts, finder.tests, finder.branches)


def _is_single_bool(op: CapturedOp) -> bool:
    return op.dtype == torch.bool and math.prod(op.shape) == 1 and op.kind == "op"


def _evaluating(
    ops: Sequence[CapturedOp], tested: Sequence[int], to_output: Sequence[int]
) -> tuple[set[int], set[int]]:
    """Walk back from each condition to the path from input to output: the operations on the way, and the last ones."""
    evaluating: set[int] = set()
    starts: set[int] = set()
    todo = list(tested)
    while todo:
        index = todo.pop()
        if to_output[index] or index in evaluating or ops[index].kind != "op":
            continue
        evaluating.add(index)
        parents = ops[index].parents
        if not parents or any(to_output[parent] or ops[parent].kind != "op" for parent in parents):
            starts.add(index)
        todo.extend(parents)
    return evaluating, starts


class _TestRun(msgspec.Struct):
    """A test that Python ran: on which value, where in the source, and which branch it led to, as far as known."""

    read: ValueRead
    test: Test | None
    branch: Branch | None
    span: Span | None

    @property
    def taken(self) -> Span | None:
        """Where the taken branch stands in the source."""
        if self.test is None or self.branch is None:
            return None
        return self.test.then if self.branch == "then" else self.test.otherwise


def _test_run(read: ValueRead) -> _TestRun | None:
    """A value read as a test; None if the source shows no test there."""
    if read.stack is None:
        return _TestRun(read, None, None, None) if read.how == "bool" else None
    _, code, instruction = read.stack
    test, span = test_at(code, instruction)
    if test is None or span is None:
        return _TestRun(read, None, None, span) if read.how == "bool" else None
    outcome = _outcome(test.expression, span, read.value) if read.how == "bool" else None
    branch: Branch | None = None if outcome is None else "then" if outcome else "else"
    return _TestRun(read, test, branch, span)


class _BranchFinder:
    """Finds the branches that were taken, and what ran in them."""

    def __init__(self, ops: Sequence[CapturedOp], runs: Sequence[_TestRun], labels: Mapping[int, str]) -> None:
        self._ops = ops
        self._undecided = runs
        self._labels = labels

    def tests(self) -> list[Condition]:
        """The tests that Python made, in order."""
        conditions = []
        for number, run in enumerate(self._runs):
            read, span = run.read, run.span
            within = tuple(n for n, _ in self._branches_around(read.stack, read.at) if n != number)
            kind: TestKind | Literal["bool"] = run.test.kind if run.test else "bool"
            file = read.stack[1].co_filename if read.stack else ""
            line = run.test.span.line if run.test else span.line if span else 0
            label = self._labels[read.op]
            conditions.append(Condition(number, label, kind, read.value, run.branch, file, line, within))
        return conditions

    def branches(self) -> BranchesTaken:
        """For each operation the branches that it ran in."""
        return {
            op.index: around
            for op in self._ops
            if op.kind == "op" and (around := self._branches_around(op.call.stack, op.index))
        }

    @cached_property
    def _runs(self) -> Sequence[_TestRun]:
        for run in self._undecided:
            if run.branch is None and run.test is not None and run.read.stack is not None:
                run.branch = self._branch_that_ran(run.test, run.read.stack, run.read.at)
        return self._undecided

    def _branch_that_ran(self, test: Test, stack: Stack, at: int) -> Branch | None:
        for op in self._ops[at:]:
            span = _span_in(op.call.stack, stack)
            if span is None:
                continue
            if not test.span.holds(span):
                return None  # the function has moved on past the test
            if test.then is not None and test.then.holds(span):
                return "then"
            if test.otherwise is not None and test.otherwise.holds(span):
                return "else"
        return None

    def _branches_around(self, stack: Stack | None, at: int) -> tuple[tuple[int, Branch], ...]:
        """The taken branches around a call; for a test in a loop, those of its last run before the call."""
        around: dict[int, tuple[int, Branch]] = {}
        for number, run in enumerate(self._runs):
            if run.read.at > at or run.test is None or run.read.stack is None:
                continue
            span = _span_in(stack, run.read.stack)
            if span is None:
                continue
            key = id(run.test)
            around.pop(key, None)
            if run.taken is not None and run.branch is not None and run.taken.holds(span):
                around[key] = (number, run.branch)
        return tuple(sorted(around.values()))


def _span_in(stack: Stack | None, test: Stack) -> Span | None:
    """The position of a call inside the function that ran a test, if it was made by the same call of that function."""
    around, code, _ = test
    while stack is not None:
        if stack[1] is code and (stack[0] is around or stack[0] == around):
            return span_of(code, stack[2])
        stack = stack[0]
    return None


# The source: where an instruction is in it, and which test that is part of.


class Span(NamedTuple):
    """Lines and columns of a piece of source, both ends included."""

    line: int
    end_line: int
    column: int | None = None
    end_column: int | None = None

    def holds(self, other: Span) -> bool:
        """Whether another span lies inside; by lines alone if columns are unknown."""
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


def test_at(code: CodeType, instruction: int) -> tuple[Test | None, Span | None]:
    """The innermost test that an instruction is part of, and the span of what it tested."""
    span = span_of(code, instruction)
    if span is None:
        return None, None
    around = [test for test in _tests_in(code.co_filename) if _span(test.expression).holds(span)]
    return min(around, key=lambda test: _extent(_span(test.expression)), default=None), span


def span_of(code: CodeType, instruction: int) -> Span | None:
    """The position of an instruction in the source; for a jump, that of the value it depends on."""
    return _spans(code).get(instruction)


@lru_cache(maxsize=4096)
def _spans(code: CodeType) -> dict[int, Span | None]:
    spans: dict[int, Span | None] = {}
    previous: Span | None = None
    line = code.co_firstlineno
    for instruction in dis.get_instructions(code):
        starts_line = instruction.starts_line  # a line up to Python 3.12, a bool from 3.13 on
        line = starts_line if isinstance(starts_line, int) and starts_line > 1 else line
        span = _columns(instruction) or Span(line, line)
        # After a method call, a jump has the position of the whole statement.
        is_jump = "JUMP" in instruction.opname
        spans[instruction.offset] = previous if is_jump and previous is not None else span
        previous = span
    return spans


def _columns(instruction: dis.Instruction) -> Span | None:
    """Lines and columns, which are known from Python 3.11 on."""
    positions = getattr(instruction, "positions", None)
    if positions is None or positions.lineno is None or positions.end_lineno is None:
        return None
    return Span(positions.lineno, positions.end_lineno, positions.col_offset, positions.end_col_offset)


def _outcome(expression: ast.expr, span: Span, value: object) -> bool | None:
    """The outcome of a test, given the value of one expression in it; None if that does not decide it."""
    if isinstance(expression, ast.UnaryOp) and isinstance(expression.op, ast.Not):
        inner = _outcome(expression.operand, span, value)
        return None if inner is None else not inner
    if isinstance(expression, ast.BoolOp):
        decisive = isinstance(expression.op, ast.Or)  # True decides an `or`, False an `and`
        for number, operand in enumerate(expression.values, 1):
            if _span(operand).holds(span):
                inner = _outcome(operand, span, value)
                is_last = number == len(expression.values)
                return inner if is_last or inner is decisive else None
        return None
    if isinstance(expression, ast.Compare) and len(expression.ops) > 1:
        return None if value else False  # where `0 < x` is true, `0 < x < 9` is still open
    if isinstance(expression, ast.Call) and _is_bool(expression):
        return bool(value)
    return bool(value) if _span(expression) == span or span.column is None else None


def _is_bool(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Name) and call.func.id == "bool"


@lru_cache(maxsize=256)
def _tests_in(file: str) -> tuple[Test, ...]:
    source = "".join(linecache.getlines(file))
    try:
        tree = ast.parse(source)
    except SyntaxError:  # not Python source, as for code typed into a shell
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
