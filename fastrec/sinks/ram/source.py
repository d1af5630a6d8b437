"""What was kept in RAM up to a moment, to be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastrec._torch.tensors import outside_torch_modes
from fastrec.events.sites import Catalog
from fastrec.recording._source import RECORD_DTYPE, Part, PhaseSteps
from fastrec.sinks._blocks import MAX_ROWS, ROW_BITS, Block, UncopiedPass
from fastrec.sinks._pass_table import Ended, Table

Integers = npt.NDArray[np.int64]


class RAMSource(msgspec.Struct, dict=True, eq=False):
    """Passes that ended, and the blocks that their values are in."""

    catalog: Catalog
    table: Table
    ended: Sequence[Ended]
    given: Mapping[int, Block | UncopiedPass]
    marked: Sequence[PhaseSteps]
    empty: int

    @cached_property
    def _blocks(self) -> Mapping[int, Block]:
        blocks: dict[int, Block] = {}
        for _, _, rows, _ in self.ended:
            if isinstance(rows, UncopiedPass):
                blocks.update((one.number, one) for one in rows.blocks())
        for number, block in self.given.items():
            if isinstance(block, UncopiedPass):
                blocks.update((one.number, one) for one in block.blocks())
            else:
                blocks[number] = block
        return blocks

    def n_passes(self) -> int:
        """How many passes ended, those that kept nothing included."""
        return len(self.passes()) + self.empty

    def passes(self) -> npt.NDArray[Any]:
        """One row per pass that kept something or ended badly, of ``PASS_DTYPE``, in order of ``pass_index``."""
        return self._sorted[0]

    def records(self) -> npt.NDArray[Any]:
        """One row per record, of ``RECORD_DTYPE``, in order of (pass, event)."""
        return self._sorted[1]

    def steps(self) -> Sequence[PhaseSteps]:
        """The marked steps, of each phase that has some."""
        return self.marked

    def sample_id(self, pass_index: int) -> str | int | None:
        """The sample id that a pass was logged with."""
        return self._sorted[2].get(pass_index)

    def value(self, meta: int, row: int, part: Part) -> Tensor | None:
        """One part of a record, None where it has no such part (yet)."""
        if row < 0:
            return None
        block = self._blocks[row >> ROW_BITS]
        if part == "gradient":
            return block.gradients.get(row)
        if block.kept:
            return block.kept.get(part)
        rows = block.parts.get(part)
        if rows is None:
            return None
        with outside_torch_modes():
            return rows.read()[row - block.first]

    def values(self, metas: Integers, rows: Integers, part: Part) -> Sequence[Tensor]:
        """The values of many records in their order, each with its records in front; as few tensors as possible."""
        numbers = rows >> ROW_BITS
        edges = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(rows)]
        with outside_torch_modes():
            gathered = self._gather(rows, part) if len(edges) > 64 else None
            if gathered is not None:
                return [gathered]
            return [self._run(rows[start:stop], part, start) for start, stop in zip(edges, edges[1:], strict=False)]

    def layouts(self, rows: Integers, part: Part) -> tuple[Integers, list[tuple[tuple[int, ...], torch.dtype]]]:
        """Which layout the values of records have, and the shape and dtype of each."""
        # Values of a block have one layout, but each has a gradient of its own, or none.
        alike = rows if part == "gradient" else rows >> ROW_BITS
        _, first, inverse = np.unique(alike, return_index=True, return_inverse=True)
        numbers: dict[tuple[tuple[int, ...], torch.dtype], int] = {}
        which = np.empty(len(first), np.int64)
        for i in np.argsort(first).tolist():
            position = int(first[i])
            which[i] = numbers.setdefault(self._layout(int(rows[position]), part, position), len(numbers))
        return which[inverse], list(numbers)

    def nbytes(self, metas: Integers, rows: Integers) -> Integers:
        """The bytes that each record's tensors take."""
        numbers, inverse = np.unique(rows >> ROW_BITS, return_inverse=True)
        sizes = [_row_bytes(self._blocks[number]) if number >= 0 else 0 for number in numbers.tolist()]
        return np.array(sizes, dtype=np.int64)[inverse]

    @cached_property
    def _sorted(self) -> tuple[npt.NDArray[Any], npt.NDArray[Any], Mapping[int, str | int]]:
        table = self.table
        if self.ended:
            table = table.copy()
            table.add(
                [(i, v, rows.rows if isinstance(rows, UncopiedPass) else rows, t) for i, v, rows, t in self.ended]
            )
        passes = table.read_passes().copy()
        passes["started"] -= self.catalog.began
        records = np.empty(len(table.rows), RECORD_DTYPE)
        records["meta"], records["row"], records["time"] = table.metas, table.rows, table.times
        index = passes["pass_index"]
        if np.any(index[1:] < index[:-1]):
            # Passes of several threads end in another order than they began.
            passes = passes[np.argsort(index)]
            count = passes["count"]
            first = np.cumsum(count) - count
            records = records[np.repeat(passes["first"] - first, count) + np.arange(len(records))]
            passes["first"] = first
        return passes, records, table.samples

    def _layout(self, row: int, part: Part, position: int) -> tuple[tuple[int, ...], torch.dtype]:
        block = self._blocks.get(row >> ROW_BITS)
        if block is None:  # row -1: no tensor was kept
            raise KeyError(position)
        if part == "gradient" and row in block.gradients:
            value = block.gradients[row]
        elif part in block.kept:
            value = block.kept[part]
        elif part in block.parts:
            value = block.parts[part].read()[0]
        else:
            raise KeyError(position)
        return tuple(value.shape), value.dtype

    def _run(self, rows: Integers, part: Part, start: int) -> Tensor:
        """The values of rows of one block."""
        block = self._blocks.get(int(rows[0]) >> ROW_BITS)
        if block is None:  # row -1: no tensor was kept
            raise KeyError(start)
        if part == "gradient":
            for i, row in enumerate(rows.tolist()):
                if row not in block.gradients:
                    raise KeyError(start + i)
            return torch.stack([block.gradients[row] for row in rows.tolist()])
        if part in block.kept:
            return block.kept[part].unsqueeze(0)
        if part not in block.parts:
            raise KeyError(start)
        return _pick(block.parts[part].read(), rows & (MAX_ROWS - 1))

    def _gather(self, rows: Integers, part: Part) -> Tensor | None:
        """The values of rows that change blocks all the time, block by block; None where that can't be one tensor."""
        numbers = rows >> ROW_BITS
        order = np.argsort(numbers, kind="stable")
        found, starts = np.unique(numbers[order], return_index=True)
        blocks = [self._blocks.get(number) for number in found.tolist()]
        if len(found) * 2 > len(rows) or not all(block and part in block.parts for block in blocks):
            return None
        tensors = [block.parts[part].read() for block in blocks if block]
        if len({(tensor.shape[1:], tensor.dtype, tensor.device) for tensor in tensors}) > 1:
            return None
        places = np.split(rows[order] & (MAX_ROWS - 1), starts[1:])
        together = torch.cat([_pick(tensor, place) for tensor, place in zip(tensors, places, strict=True)])
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        return together[torch.from_numpy(back).to(together.device)]


def _pick(values: Tensor, places: Integers) -> Tensor:
    """Some rows of a tensor: a view where they are evenly spaced, else a copy."""
    first = int(places[0])
    if len(places) == 1:
        return values[first : first + 1]
    step = int(places[1]) - first
    if step > 0 and bool((np.diff(places) == step).all()):
        return values[first : int(places[-1]) + 1 : step]
    return values[torch.from_numpy(places).to(values.device)]


def _row_bytes(block: Block) -> int:
    return sum(rows.nbytes for rows in block.parts.values()) + sum(kept.nbytes for kept in block.kept.values())
