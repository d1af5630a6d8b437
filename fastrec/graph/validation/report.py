"""The result of a validation."""

from __future__ import annotations

from typing import Any

import msgspec

from fastrec._optional import pandas


class Failure(msgspec.Struct, frozen=True):
    """An operation or a record that is wrong, and why."""

    name: str
    why: str

    def __str__(self) -> str:
        return f"{self.name}: {self.why}"


class Exempted(msgspec.Struct, frozen=True):
    """A parent that may be replaced by random values without changing the result: by which rule, and why.

    ``parent`` is empty if it is the operation's own value that need not equal a replay's.
    """

    name: str
    parent: str
    rule: str
    why: str

    def __str__(self) -> str:
        return f"{self.name}{' of ' if self.parent else ''}{self.parent} ({self.rule}): {self.why}"


class Unchecked(msgspec.Struct, frozen=True):
    """An operation or a record that could not be checked, and why."""

    name: str
    why: str

    def __str__(self) -> str:
        return f"{self.name}: {self.why}"


class ValidationReport(msgspec.Struct):
    """Whether what was saved is right; true or false as a value.

    >>> import torch
    >>> from fastrec.graph import validate_saved_activations
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU())
    >>> report = validate_saved_activations(model, torch.ones(2, 4))
    >>> bool(report), report.n_replayed, report.first_failure
    (True, 2, None)

    Fields:
        failures: what is wrong, in order of execution; ``first_failure`` is where it starts.
        exempted: parents whose values made no difference, and why that is right.
        unchecked: what could not be checked, and why.
        n_operations, n_replayed, n_perturbed: the numbers of operations checked, of operations run again from their
            saved parents, and of parents replaced by random values.
        n_inexact, largest_difference: the number of replays that differ from the saved value by rounding, and the
            largest such difference, relative to the largest number in the value.
    """

    failures: list[Failure] = []
    exempted: list[Exempted] = []
    unchecked: list[Unchecked] = []
    n_operations: int = 0
    n_replayed: int = 0
    n_perturbed: int = 0
    n_inexact: int = 0
    largest_difference: float = 0.0

    def __bool__(self) -> bool:
        return not self.failures

    @property
    def first_failure(self) -> Failure | None:
        """The first operation that is wrong, in order of execution."""
        return self.failures[0] if self.failures else None

    def to_pandas(self) -> Any:
        """One row for each failure, exemption and unchecked operation; needs pandas."""
        rows = [
            {"verdict": verdict, "parent": None, "rule": None, **msgspec.structs.asdict(entry)}
            for verdict in ("failures", "exempted", "unchecked")
            for entry in getattr(self, verdict)
        ]
        return pandas().DataFrame(rows, columns=["verdict", "name", "parent", "rule", "why"])

    def __str__(self) -> str:
        head = (
            f"{'Valid' if self else 'NOT valid'}: {self.n_operations} operations, {self.n_replayed} replayed "
            f"({self.n_inexact} equal up to rounding), {self.n_perturbed} parents replaced by random values"
        )
        lines = [head]
        for title, entries in (
            ("Wrong", self.failures),
            ("Exempted", self.exempted),
            ("Not checked", self.unchecked),
        ):
            lines += [f"    {title}:"] if entries else []
            lines += [f"        {entry}" for entry in entries[:20]]
            lines += [f"        and {len(entries) - 20} more"] if len(entries) > 20 else []
        return "\n".join(lines)

    __repr__ = __str__
