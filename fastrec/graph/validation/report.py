"""What a validation found."""

from __future__ import annotations

from typing import Any

import msgspec

from fastrec._optional import require


class Failure(msgspec.Struct, frozen=True):
    """An operation, or a record, that is not what it should be, and why."""

    name: str
    why: str

    def __str__(self) -> str:
        return f"{self.name}: {self.why}"


class Exempted(msgspec.Struct, frozen=True):
    """A parent whose random replacement did not have to change the result: by which rule, and why that is right.

    ``parent`` is empty where the operation's own value did not have to be what a replay gives.
    """

    name: str
    parent: str
    rule: str
    why: str

    def __str__(self) -> str:
        return f"{self.name}{' of ' if self.parent else ''}{self.parent} ({self.rule}): {self.why}"


class Unchecked(msgspec.Struct, frozen=True):
    """An operation, or a record, that could not be checked, and why."""

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
        failures: what is wrong, in order of execution; ``first_failure`` is where it began.
        exempted: parents whose value made no difference, and why that is right there.
        unchecked: what nothing can be said about, and why.
        n_operations, n_replayed, n_perturbed: operations looked at, run again from their saved parents, and parents
            replaced by random values.
        n_inexact, largest_difference: replays that differ from the saved value by rounding, and by how much at most,
            relative to the largest number in that value.
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
        """The first operation, in order of execution, that is wrong."""
        return self.failures[0] if self.failures else None

    def to_pandas(self) -> Any:
        """One row for each failure, exemption and thing unchecked; needs pandas."""
        rows = [
            {"verdict": verdict, "parent": None, "rule": None, **msgspec.structs.asdict(entry)}
            for verdict in ("failures", "exempted", "unchecked")
            for entry in getattr(self, verdict)
        ]
        pandas = require("pandas", extra="pandas", what="to_pandas()")
        return pandas.DataFrame(rows, columns=["verdict", "name", "parent", "rule", "why"])

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
