"""What the source says about a place where Python looked at a value."""

from __future__ import annotations

import ast
import dis
import linecache
from collections.abc import Iterator
from functools import lru_cache
from types import CodeType
from typing import Literal, NamedTuple

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
