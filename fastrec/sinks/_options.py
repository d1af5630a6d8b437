"""From the ``sink`` option to the sinks of a session."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import numpy.typing as npt
from torch import Tensor

from fastrec._errors import OptionError
from fastrec.events.sites import Catalog, PassInfo
from fastrec.sinks import HDF5Sink, RAMSink
from fastrec.sinks._protocol import ColumnWriter, PassLog, Sink


class _TeeColumn:
    def __init__(self, columns: Sequence[ColumnWriter]) -> None:
        self._columns = columns

    def append(self, value: Tensor) -> Any:
        return tuple(column.append(value) for column in self._columns)

    def discard(self, row: Any) -> None:
        for column, one in zip(self._columns, row, strict=True):
            column.discard(one)


class _TeePassLog:
    def __init__(self, ledgers: Sequence[PassLog]) -> None:
        self._ledgers = ledgers

    def commit(self, info: PassInfo, metas: Sequence[int], rows: Sequence[Any], times: Sequence[float]) -> None:
        for i, ledger in enumerate(self._ledgers):
            ledger.commit(info, metas, [-1 if row == -1 else row[i] for row in rows], times)

    def mark(self, phase: int, step: int, columns: Mapping[str, npt.NDArray[Any]]) -> None:
        for ledger in self._ledgers:
            ledger.mark(phase, step, columns)

    def close(self) -> None:
        for ledger in self._ledgers:
            ledger.close()


class TeeSink:
    """Gives every record to each of several sinks."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self.sinks = list(sinks)

    def open(self, catalog: Catalog) -> PassLog:
        """A session begins."""
        return _TeePassLog([sink.open(catalog) for sink in self.sinks])

    def column(self, meta: int, value: Tensor) -> ColumnWriter:
        """One column that writes to a column of each sink."""
        return _TeeColumn([sink.column(meta, value) for sink in self.sinks])


def sinks_from_option(option: Any) -> list[Sink]:
    """The sinks that the option stands for; RAM where none is given."""
    if option is None:
        return [RAMSink()]
    if isinstance(option, str | PathLike):
        return [HDF5Sink(option)]
    if isinstance(option, list | tuple):
        if not option:
            raise OptionError("sink=[]: give at least one sink, or leave it out to record into RAM")
        return [sink for one in option for sink in sinks_from_option(one)]
    if not (callable(getattr(option, "open", None)) and callable(getattr(option, "column", None))):
        raise OptionError(f"sink={option!r}: give a path such as 'run.h5', a sink, or a list of them")
    return [option]
