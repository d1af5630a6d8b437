"""What RAM held at one moment, to be read: the ``Source`` of recordings in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from os import PathLike
from time import perf_counter, time
from typing import TypeAlias

import msgspec
import numpy as np
import torch
from torch import Tensor

from fastrec._torch.tensors import outside_torch_modes
from fastrec.events.sites import Catalog, PassInfo, SampleId
from fastrec.recording._source import RECORD_DTYPE, Integers, Part, PhaseSteps, Source, StructuredArray
from fastrec.sinks._blocks import MAX_ROWS, ROW_BITS
from fastrec.sinks._pass_table import PassTable
from fastrec.sinks.ram.pool import Block, UncopiedPass

UnpackedPass: TypeAlias = tuple[PassInfo, Sequence[int], Sequence[int] | UncopiedPass, Sequence[float]]
"""A pass with the metas, rows and times of its records; an ``UncopiedPass`` stands for the rows and has the values."""

MAX_RUNS = 64
"""Records that change blocks more often than this are gathered block by block."""


class RAMSource(msgspec.Struct, dict=True, eq=False):
    """Passes that ended, and the blocks that their values are in.

    ``pop`` makes one after each pass of a training loop, so everything else is worked out when it is read.
    """

    catalog: Catalog
    table: PassTable
    unpacked: Sequence[UnpackedPass]
    blocks: Mapping[int, Block | UncopiedPass]
    phase_steps: Sequence[PhaseSteps]
    n_empty: int

    def n_passes(self) -> int:
        """How many passes ended, including those that kept nothing."""
        return len(self.passes()) + self.n_empty

    def passes(self) -> StructuredArray:
        """One row of ``PASS_DTYPE`` for each pass that kept something or failed, in order of ``pass_index``."""
        return self._tables[0]

    def records(self) -> StructuredArray:
        """One row of ``RECORD_DTYPE`` for each record, in order of (pass, event)."""
        return self._tables[1]

    def steps(self) -> Sequence[PhaseSteps]:
        """The marked steps of each phase that has some."""
        return self.phase_steps

    def sample_id(self, pass_index: int) -> SampleId | None:
        """The sample id that a pass was logged with."""
        return self._tables[2].get(pass_index)

    def value(self, meta: int, row: int, part: Part) -> Tensor | None:
        """One part of a record; None where the record has no such part (yet)."""
        if row < 0:
            return None
        block = self._block_of_number[row >> ROW_BITS]
        if part == "gradient":
            return block.gradients.get(row)
        if block.own_tensors:
            return block.own_tensors.get(part)
        rows = block.parts.get(part)
        if rows is None:
            return None
        with outside_torch_modes():
            return rows.read()[row - block.first]

    def values(self, metas: Integers, rows: Integers, part: Part) -> Sequence[Tensor]:
        """The values of many records in their order, in as few tensors as possible, each of shape [records, ...]."""
        numbers = rows >> ROW_BITS
        edges = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(rows)]
        with outside_torch_modes():
            gathered = self._gather(rows, part) if len(edges) > MAX_RUNS else None
            if gathered is not None:
                return [gathered]
            return [
                self._read_run(rows[start:stop], part, start) for start, stop in zip(edges, edges[1:], strict=False)
            ]

    def layouts(self, rows: Integers, part: Part) -> tuple[Integers, list[tuple[tuple[int, ...], torch.dtype]]]:
        """The shapes and dtypes that values of these records have, and for each record which of them is its own."""
        # Values of one block have one layout. A gradient is there or not for each record on its own.
        groups = rows if part == "gradient" else rows >> ROW_BITS
        _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
        number_of_layout: dict[tuple[tuple[int, ...], torch.dtype], int] = {}
        numbers = np.empty(len(first), np.int64)
        for i in np.argsort(first).tolist():
            position = int(first[i])
            layout = self._layout(int(rows[position]), part, position)
            numbers[i] = number_of_layout.setdefault(layout, len(number_of_layout))
        return numbers[inverse], list(number_of_layout)

    def nbytes(self, metas: Integers, rows: Integers) -> Integers:
        """The bytes that the tensors of each record take."""
        numbers, inverse = np.unique(rows >> ROW_BITS, return_inverse=True)
        sizes = [_row_bytes(self._block_of_number[number]) if number >= 0 else 0 for number in numbers.tolist()]
        return np.array(sizes, dtype=np.int64)[inverse]

    def save(self, part: Source, path: str | PathLike[str]) -> None:
        """Write a file of a part of it, or of all of it."""
        from fastrec.sinks.hdf5.save import save_part  # loads h5py, which RAM doesn't need

        began = time() - (perf_counter() - self.catalog.began)
        save_part(part, path, {"header": self.catalog.header, "began": began})

    @cached_property
    def _tables(self) -> tuple[StructuredArray, StructuredArray, Mapping[int, SampleId]]:
        """Passes and records in order, and the sample ids."""
        table = self.table
        if self.unpacked:
            table = table.copy()
            table.add(
                [
                    (info, metas, rows.rows if isinstance(rows, UncopiedPass) else rows, times)
                    for info, metas, rows, times in self.unpacked
                ]
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

    @cached_property
    def _block_of_number(self) -> Mapping[int, Block]:
        """All blocks, those of uncopied passes made now."""
        blocks: dict[int, Block] = {}
        uncopied = [rows for _, _, rows, _ in self.unpacked if isinstance(rows, UncopiedPass)]
        for number, block in self.blocks.items():
            if isinstance(block, UncopiedPass):
                uncopied.append(block)
            else:
                blocks[number] = block
        for pass_ in uncopied:
            blocks.update((block.number, block) for block in pass_.blocks())
        return blocks

    def _layout(self, row: int, part: Part, position: int) -> tuple[tuple[int, ...], torch.dtype]:
        block = self._block_of_number.get(row >> ROW_BITS)
        if block is None:  # row -1: no tensor was kept
            raise KeyError(position)
        if part == "gradient" and row in block.gradients:
            value = block.gradients[row]
        elif part in block.own_tensors:
            value = block.own_tensors[part]
        elif part in block.parts:
            value = block.parts[part].read()[0]
        else:
            raise KeyError(position)
        return tuple(value.shape), value.dtype

    def _read_run(self, rows: Integers, part: Part, position: int) -> Tensor:
        """The values of consecutive records that are in one block; ``position`` is that of the first, for errors."""
        block = self._block_of_number.get(int(rows[0]) >> ROW_BITS)
        if block is None:  # row -1: no tensor was kept
            raise KeyError(position)
        if part == "gradient":
            for i, row in enumerate(rows.tolist()):
                if row not in block.gradients:
                    raise KeyError(position + i)
            return torch.stack([block.gradients[row] for row in rows.tolist()])
        if part in block.own_tensors:
            return block.own_tensors[part].unsqueeze(0)
        if part not in block.parts:
            raise KeyError(position)
        return _take_rows(block.parts[part].read(), rows & (MAX_ROWS - 1))

    def _gather(self, rows: Integers, part: Part) -> Tensor | None:
        """The values of rows that change blocks all the time, block by block; None where that can't be one tensor."""
        numbers = rows >> ROW_BITS
        order = np.argsort(numbers, kind="stable")
        block_numbers, starts = np.unique(numbers[order], return_index=True)
        blocks = [self._block_of_number.get(number) for number in block_numbers.tolist()]
        if len(blocks) * 2 > len(rows) or not all(block and part in block.parts for block in blocks):
            return None
        tensors = [block.parts[part].read() for block in blocks if block]
        if len({(tensor.shape[1:], tensor.dtype, tensor.device) for tensor in tensors}) > 1:
            return None
        indices = np.split(rows[order] & (MAX_ROWS - 1), starts[1:])
        values = torch.cat([_take_rows(*pair) for pair in zip(tensors, indices, strict=True)])
        position_in_values = np.empty(len(order), np.int64)
        position_in_values[order] = np.arange(len(order))
        return values[torch.from_numpy(position_in_values).to(values.device)]


def _take_rows(values: Tensor, indices: Integers) -> Tensor:
    """Some rows of a tensor: a view where they are evenly spaced, else a copy."""
    first = int(indices[0])
    if len(indices) == 1:
        return values[first : first + 1]
    step = int(indices[1]) - first
    if step > 0 and bool((np.diff(indices) == step).all()):
        return values[first : int(indices[-1]) + 1 : step]
    return values[torch.from_numpy(indices).to(values.device)]


def _row_bytes(block: Block) -> int:
    return sum(rows.nbytes for rows in block.parts.values()) + sum(own.nbytes for own in block.own_tensors.values())
