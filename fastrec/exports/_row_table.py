"""A table of rows: a column per key, and beside it what tells the rows apart.

    table = RowTable.of(recording, keys={"tanh_1": "hidden"}, by="sample")
    for start, stop in table.stretches(STRETCH_BYTES):
        table.read(start, stop)             # {"pass_index": ..., "step": ..., "hidden": ...}

Row *i* of each key comes from the same pass. ``rank`` is there where several processes recorded, ``env`` where rows are
those of several environments, ``phase`` where there are phases, and ``sample_id`` where passes have one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec
import numpy as np
import torch

from fastrec._errors import OptionError, RecordKeyError
from fastrec.exports._contract import Keys, keys_by_name
from fastrec.recording._arrays import numpy_of
from fastrec.recording._labels import RowLabels
from fastrec.recording._recording import Recording
from fastrec.recording._rows import By, Rows, check_same_passes, shared_edges
from fastrec.recording._source import Array


class RowTable(msgspec.Struct, frozen=True):
    """The rows of keys, by the names of their columns, and the columns beside them."""

    rows: Mapping[str, Rows]
    beside: Mapping[str, Array]

    @classmethod
    def of(cls, recording: Recording, keys: Keys | None, by: By) -> RowTable:
        """The table of keys; among several may be step columns, which stand beside the rows."""
        names = keys_by_name(recording, keys)
        columns = {name: key for name, key in names.items() if key not in recording and key in list(recording.steps)}
        rows = {name: recording.rows(key, by) for name, key in names.items() if name not in columns}
        if not rows:
            raise RecordKeyError(f"columns of the steps stand beside the rows of a key; give one too: {keys!r}")
        check_same_passes(rows)
        labels = next(iter(rows.values())).labels
        beside = _labels(recording, labels)
        beside.update({name: labels.column(key) for name, key in columns.items()})
        taken = sorted(set(rows) & set(beside))
        if taken:
            raise OptionError(
                f"a key can't be named {taken[0]!r}, which is a column of every row; give another name: "
                f"keys={{{names[taken[0]]!r}: 'another'}}"
            )
        return cls(rows, beside)

    def __len__(self) -> int:
        return len(next(iter(self.rows.values())))

    @property
    def row_bytes(self) -> int:
        """The bytes of the values of one row."""
        return sum(rows.row_bytes for rows in self.rows.values())

    def stretches(self, nbytes: int) -> Iterator[tuple[int, int]]:
        """Where to divide the rows into stretches of about so many bytes, which need not all be in memory."""
        edges = shared_edges(list(self.rows.values()), nbytes).tolist()
        return zip(edges, edges[1:], strict=False)

    def read(self, start: int, stop: int) -> dict[str, Array]:
        """All columns of consecutive rows; bfloat16 and float8, which numpy lacks, as float32."""
        columns = {name: column[start:stop] for name, column in self.beside.items()}
        columns.update({name: self.read_key(name, start, stop) for name in self.rows})
        return columns

    def read_key(self, name: str, start: int, stop: int) -> Array:
        """The values of one key in consecutive rows."""
        return numpy_of(self.rows[name].read(start, stop))

    def dtype_of(self, name: str) -> np.dtype[np.generic]:
        """The dtype that the values of a key get."""
        dtype: np.dtype[np.generic] = numpy_of(torch.empty(0, dtype=self.rows[name].dtype)).dtype
        return dtype


def _labels(recording: Recording, labels: RowLabels) -> dict[str, Array]:
    """What stands beside the rows, as far as there is something to tell."""
    columns: dict[str, Array] = {"pass_index": labels.pass_index, "step": labels.step}
    if recording.processes:
        columns["rank"] = labels.rank
    if len(recording.phases) > 1 or recording.phases != [""]:
        columns["phase"] = labels.phase
    sample_ids = labels.sample_id
    if sample_ids and all(isinstance(sample_id, int) for sample_id in sample_ids):
        columns["sample_id"] = np.array(sample_ids, np.int64)
    elif any(sample_id is not None for sample_id in sample_ids):
        columns["sample_id"] = np.array([None if each is None else str(each) for each in sample_ids], object)
    env = labels.env
    if (env > 0).any():
        columns["env"] = env
    return columns
