"""From the ``sink`` option of a recorder to the sinks of its session."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

from torch import Tensor

from fastrec._errors import OptionError
from fastrec.events.sites import Catalog, PassInfo
from fastrec.recording._source import Array
from fastrec.sinks import HDF5Sink, RAMSink
from fastrec.sinks._protocol import ColumnWriter, PassLog, Sink


def sinks_from_option(option: Any) -> list[Sink]:
    """The sinks that the option means; RAM where none is given."""
    if option is None:
        return [RAMSink()]
    if isinstance(option, str | PathLike):
        return [HDF5Sink(option)]
    if isinstance(option, list | tuple):
        if not option:
            raise OptionError("sink=[]: give at least one sink, or leave it out to record into RAM")
        return [sink for element in option for sink in sinks_from_option(element)]
    if not (callable(getattr(option, "open", None)) and callable(getattr(option, "column", None))):
        raise OptionError(f"sink={option!r}: give a path such as 'run.h5', a sink, or a list of them")
    return [option]


class TeeSink:
    """Gives every record to each of several sinks. A row of it is a tuple with the row of each sink."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self.sinks = list(sinks)

    def open(self, catalog: Catalog) -> PassLog:
        """Begin a session in each sink."""
        return _TeePassLog([sink.open(catalog) for sink in self.sinks])

    def column(self, meta: int, value: Tensor) -> ColumnWriter:
        """A column that writes to a column of each sink."""
        return _TeeColumn([sink.column(meta, value) for sink in self.sinks])


class _TeeColumn:
    def __init__(self, columns: Sequence[ColumnWriter]) -> None:
        self._columns = columns

    def append(self, value: Tensor) -> Any:  # a tuple, which the session hands back and never looks into
        return tuple(column.append(value) for column in self._columns)

    def discard(self, row: Any) -> None:
        for column, column_row in zip(self._columns, row, strict=True):
            column.discard(column_row)


class _TeePassLog:
    def __init__(self, pass_logs: Sequence[PassLog]) -> None:
        self._pass_logs = pass_logs

    def commit(self, info: PassInfo, metas: Sequence[int], rows: Sequence[Any], times: Sequence[float]) -> None:
        for i, pass_log in enumerate(self._pass_logs):
            pass_log.commit(info, metas, [-1 if row == -1 else row[i] for row in rows], times)

    def mark(self, phase: int, step: int, columns: Mapping[str, Array]) -> None:
        for pass_log in self._pass_logs:
            pass_log.mark(phase, step, columns)

    def close(self) -> None:
        for pass_log in self._pass_logs:
            pass_log.close()
