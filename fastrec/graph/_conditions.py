"""Conditions: where a value of the pass steered it, and which operations computed that value."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch

from fastrec.graph._raw import Op, Truth


class Conditions:
    """What is known of the conditions of a pass.

    ``terminal_bools`` are the single booleans that no operation reads; ``evaluating`` the operations that take part in
    a condition and in nothing that leads to an output; ``starts`` those of them that read from outside of it.
    After the paper, Implementation; what Python looked at (``if x:``, ``x.item()``) counts too, whatever its type.
    """

    def __init__(
        self,
        ops: Sequence[Op],
        order: Iterable[int],
        children: Mapping[int, Sequence[int]],
        to_output: Sequence[int],
        truths: Iterable[Truth],
    ) -> None:
        self.terminal_bools = {i for i in order if not children.get(i) and _is_single_bool(ops[i])}
        tested = {truth.op for truth in truths if truth.how == "bool"}
        self.tested = sorted(self.terminal_bools | tested)
        self.evaluating: set[int] = set()
        self.starts: set[int] = set()
        for index in self.tested:
            self._trace(ops, to_output, index)

    def _trace(self, ops: Sequence[Op], to_output: Sequence[int], index: int) -> None:
        """Walk back from a condition to where it leaves the way to the output."""
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


def _is_single_bool(op: Op) -> bool:
    return op.dtype == torch.bool and math.prod(op.shape) == 1 and op.kind == "op"
