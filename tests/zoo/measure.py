"""One row of the table: what logging and validating a model says, and how long it takes."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import msgspec
import torch

from fastrec._torch.state import random_state_restored, restored
from fastrec._torch.trees import leaves
from fastrec.graph import log_forward_pass, validate_history

REFUSED = (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, OSError, RuntimeError, TypeError)


class Row(msgspec.Struct):
    """A model, the number of its operations, what validation says, seconds of a log, and its ratio to a bare pass."""

    name: str
    operations: int = 0
    verdict: str = ""
    valid: bool = False
    seconds: float = 0.0
    ratio: float = 0.0
    exempted: dict[str, int] = {}
    unchecked: int = 0
    inexact: int = 0


def measure(name: str, make: Callable[[], Any], *, repeats: int = 2) -> Row:
    """Log and validate a model, in evaluation mode."""
    row = Row(name)
    torch.manual_seed(0)
    try:
        model, args, kwargs = make()
        model.eval()
        with torch.no_grad(), random_state_restored():
            bare = _least(lambda: model(*args, **kwargs), repeats)
        with torch.no_grad(), random_state_restored(), restored([model]):
            outputs = {path: value.clone() for path, value in leaves(model(*args, **kwargs))}
    except (*REFUSED, ValueError) as error:
        row.verdict = f"not run: {type(error).__name__}: {_line(error)}"
        return row
    try:
        with torch.no_grad():
            started = perf_counter()
            history = log_forward_pass(model, args, kwargs)
            row.seconds = perf_counter() - started
            row.ratio = row.seconds / bare
            report = validate_history(history, outputs=outputs)
    except (*REFUSED, ValueError) as error:
        row.verdict = f"failed: {type(error).__name__}: {_line(error)}"
        return row
    row.operations = report.n_operations
    row.valid = bool(report) and not report.unchecked
    row.verdict = "valid" if report else f"not valid: {_line(report.first_failure)}"
    if report and report.unchecked:
        row.verdict = f"valid but for {len(report.unchecked)} operations: {_line(report.unchecked[0])}"
    for entry in report.exempted:
        row.exempted[entry.rule] = row.exempted.get(entry.rule, 0) + 1
    row.unchecked, row.inexact = len(report.unchecked), report.n_inexact
    return row


def _least(function: Callable[[], Any], repeats: int) -> float:
    """The least of several times."""
    times = []
    for _ in range(repeats):
        started = perf_counter()
        function()
        times.append(perf_counter() - started)
    return min(times)


def _line(error: Any) -> str:
    return " ".join(str(error).split())[:160]
