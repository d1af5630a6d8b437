"""The log of a segment: what the numbers in its rows mean, one line of JSON for each of them.

    log_line("site", 3, site)    # b'29c2f1a5 ["site",3,{"name":"features.3/relu","kind":"op",...}]\\n'

Rows hold numbers: of a pass's entry and phase, of a record's meta, of the data in which its value lies. The log says
what they stand for. It is only ever appended to, so it can be read while it grows: a reader stops at the first line
whose checksum does not fit. Every segment repeats it from the beginning, and so explains its own rows.

Numbers belong to a session. A recording that was continued has several, in each of which the sites, phases and passes
are counted from 0 again; ``SessionRemap`` turns them into the numbers of the whole recording when the log is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from fastrec._errors import DamagedFileError, SessionError
from fastrec.events.capture import CaptureSpec
from fastrec.events.context import PredicateFailure, RecordContext
from fastrec.events.sites import Catalog, Interned, Origin, PassInfo, RecordMeta, SampleId, Site
from fastrec.sinks.hdf5.checksums import add_checksum, strip_checksum
from fastrec.sinks.hdf5.layout import DataInfo, Rows, dtype_name, dtype_named

META = "variant"
"""What a RecordMeta is called in the log."""

MAX_SHARED = 4096
"""How many entries of logs are remembered, decoded."""

MISSING = -1
"""The number of what a damaged log does not say any more."""

_encode = msgspec.json.Encoder(enc_hook=repr).encode


def log_line(kind: str, number: int, content: Any) -> bytes:
    """One entry as it is written."""
    return add_checksum(_encode([kind, number, content]))


class CatalogLog:
    """Writes what was added to a catalog since the last time."""

    def __init__(self, catalog: Catalog) -> None:
        # An entry names only entries of the tables before its own.
        self._tables: list[tuple[str, Interned[Any] | list[Any]]] = [
            ("entry", catalog.entries),
            ("phase", catalog.phases),
            ("site", catalog.sites),
            ("spec", catalog.specs),
            (META, catalog.metas),
            ("failure", catalog.failures),
        ]
        self._written = [0] * len(self._tables)

    def restart(self) -> None:
        """Write everything again, for a new segment."""
        self._written = [0] * len(self._tables)

    def lines(self) -> Iterator[bytes]:
        """What was added since the last call."""
        # The loop goes on adding to the tables. The lengths are read from the last table to the first, so that what is
        # counted of one table names only what is counted of the tables before it.
        lengths = [len(table) for _, table in reversed(self._tables)][::-1]
        for i, (kind, table) in enumerate(self._tables):
            for number in range(self._written[i], lengths[i]):
                item = table[number]
                yield log_line(kind, number, _JSON_FORMS[kind](item) if kind in _JSON_FORMS else item)
        self._written = lengths


class _LoggedFailure(msgspec.Struct, rename={"meta": META}):
    """A predicate's failure as it is written. It holds its site and meta, because no record of the event may exist."""

    predicate: str
    error: str
    site: Site
    meta: RecordMeta
    info: PassInfo
    time: float
    step: int | None


def _logged_failure(failure: PredicateFailure) -> _LoggedFailure:
    ctx = failure.context
    return _LoggedFailure(failure.predicate, failure.error, ctx._site, ctx._meta, ctx._info, ctx._time, ctx._step)


def _spec_fields(spec: CaptureSpec) -> dict[str, Any]:
    fields = {name: getattr(spec, name) for name in CaptureSpec.__struct_fields__}
    if spec.dtype is not None:
        fields["dtype"] = dtype_name(spec.dtype)
    if spec.device is not None:
        fields["device"] = str(torch.device(spec.device))
    if spec.transform is not None:
        fields["transform"] = getattr(spec.transform, "__qualname__", None) or repr(spec.transform)
    return fields


_JSON_FORMS: dict[str, Callable[[Any], Any]] = {"spec": _spec_fields, "failure": _logged_failure}


class StoredTransform:
    """Stands for a transform that a file can't hold: its name, to be read."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, value: torch.Tensor) -> torch.Tensor:
        raise SessionError(
            f"the transform {self.name} was applied when this was recorded; the file holds only its name"
        )

    def __repr__(self) -> str:
        return f"<transform {self.name}>"


def _spec_from(fields: dict[str, Any]) -> CaptureSpec:
    if fields["dtype"] is not None:
        fields["dtype"] = dtype_named(fields["dtype"])
    if fields["transform"] is not None:
        fields["transform"] = StoredTransform(fields["transform"])
    return CaptureSpec(**fields)


_StepNumber = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]


class Log:
    """What the logs of all segments say together, in the numbers of the whole recording.

    ``facts`` are those of the first session; ``data`` is by (segment, number); ``starts`` holds by phase the steps with
    which another session began.
    """

    def __init__(self, *, salvage: bool = False) -> None:
        self.catalog = Catalog()
        self.facts: dict[str, Any] = {}
        self.samples: dict[int, SampleId] = {}
        self.data: dict[tuple[int, int], DataInfo] = {}
        self.remap = SessionRemap(SessionOffset(), salvage=salvage)
        self.starts: dict[int, set[int]] = {}
        self.damage: list[tuple[int, str]] = []
        self._salvage = salvage
        self._tables: dict[str, tuple[Interned[Any], Any]] = {
            "site": (self.catalog.sites, Site),
            META: (self.catalog.metas, RecordMeta),
            "entry": (self.catalog.entries, str),
            "phase": (self.catalog.phases, str),
        }
        self._n_failures = 0
        self._unresolved: dict[tuple[int, int], DataInfo] = {}

    def begin_session(self, offset: SessionOffset) -> None:
        """Read what follows as another session's."""
        self.remap, self._n_failures, self._unresolved = SessionRemap(offset, salvage=self._salvage), 0, {}
        for phase, steps in offset.steps.items():
            self.starts.setdefault(phase, set()).add(steps)

    def resolve(self) -> None:
        """Note what data is, once all logs were read: one may name a site that only the next segment's log has."""
        unresolved = {}
        for (segment, number), info in self._unresolved.items():
            try:
                renumbered = self.remap.data(info)
            except DamagedFileError:
                if not self._salvage:
                    raise
                continue  # of a site that the log does not name any more
            if renumbered is None:
                unresolved[segment, number] = info
            else:
                self.data[segment, number + self.remap.offset.data] = renumbered
        self._unresolved = unresolved

    def read(self, segment: int, data: bytes, *, skips_damage: bool = False) -> int:
        """Take in the log of a segment up to its first line that is not whole; how many bytes were taken in.

        With ``skips_damage`` up to its last line that is whole; what is lost is noted in ``damage``.
        """
        lines = data.split(b"\n")[:-1]
        entries = [strip_checksum(line) for line in lines]
        is_whole = [entry is not None for entry in entries]
        n_lines = is_whole.index(False) if False in is_whole else len(lines)
        if skips_damage:
            n_lines = max((i + 1 for i, whole in enumerate(is_whole) if whole), default=0)
        end = 0
        for line, entry in zip(lines[:n_lines], entries, strict=False):
            end += len(line) + 1
            if entry is None:
                self.note_damage(segment, len(line) + 1)
                continue
            try:
                kind, number, content = msgspec.json.decode(entry, type=tuple[str, int, msgspec.Raw])
                self._add(segment, kind, number, content)
            except (msgspec.DecodeError, ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
                if not self._salvage:
                    raise DamagedFileError(f"the log has an entry that makes no sense: {error}") from error
                self.note_damage(segment, len(line) + 1)
        return end

    def note_damage(self, segment: int, nbytes: int) -> None:
        """Note that some bytes of the log of a segment say nothing."""
        self.damage.append((segment, f"a line of {nbytes} bytes can't be read"))

    def _add(self, segment: int, kind: str, number: int, content: msgspec.Raw) -> None:
        catalog, remap = self.catalog, self.remap
        if kind in self._tables:
            table, item_type = self._tables[kind]
            item = _decoded(bytes(content), item_type)
            remap.add(kind, number, table, remap.meta(item) if kind == META else item)
        elif kind == "spec" and number >= remap.count("spec"):
            remap.add(kind, number, catalog.specs, _spec_from(msgspec.json.decode(content, type=dict[str, Any])))
        elif kind == "data":
            self._unresolved[segment, number] = msgspec.json.decode(content, type=DataInfo)
        elif kind == "sample":
            self.samples[number + remap.offset.passes] = msgspec.json.decode(
                content, type=str | int | tuple[str | int, ...]
            )
        elif kind == "halted":
            catalog.halted[number + remap.offset.passes] = msgspec.json.decode(content, type=str)
        elif kind == "failure" and number >= self._n_failures:
            self._n_failures = number + 1
            catalog.failures.append(self._failure(msgspec.json.decode(content, type=_LoggedFailure)))
        elif kind == "origin" and number >= len(catalog.origins):
            catalog.origins.append(remap.origin(msgspec.json.decode(content, type=Origin)))
        elif kind == "starts":
            phase = remap.number("phase", number)
            first = remap.offset.steps.get(phase, 0)
            starts = msgspec.json.decode(content, type=list[_StepNumber])
            self.starts.setdefault(phase, set()).update(first + start for start in starts)
        elif kind == "session":
            self._note_session(msgspec.json.decode(content, type=dict[str, Any]))

    def _note_session(self, facts: dict[str, Any]) -> None:
        header = msgspec.convert(facts["header"], dict[str, Any])
        self.remap.began = float(facts["began"])
        if not self.facts:
            self.facts, self.catalog.header = facts, header

    def _failure(self, failure: _LoggedFailure) -> PredicateFailure:
        meta = self.remap.meta(failure.meta)
        if len(meta.stack_passes) != len(failure.site.frames):
            raise ValueError("a failure has other modules on its stack than its site")
        info = self.remap.info(failure.info)
        step = None if failure.step is None else info.step
        ctx = RecordContext(self.catalog, failure.site, meta, info, failure.time, step)
        return PredicateFailure(failure.predicate, ctx, failure.error)


@lru_cache(maxsize=MAX_SHARED)
def _decoded(content: bytes, item_type: Any) -> Any:
    """What an entry of the log says, which never changes: hundreds of files of one run share it, and decode it once."""
    return msgspec.json.decode(content, type=item_type)


class SessionOffset(msgspec.Struct):
    """How much the sessions before one have of everything, ``steps`` by phase and ``entries`` by entry."""

    passes: int = 0
    marks: int = 0
    data: int = 0
    steps: Mapping[int, int] = {}
    entries: Mapping[int, int] = {}

    def clear_open_steps(self, passes: Rows) -> None:
        """Take earlier sessions' passes after their last mark out of its step, in place: no later mark closes it."""
        rows = np.flatnonzero(passes["pass_index"] < self.passes)
        if len(rows):
            n_marked = np.zeros(int(passes["phase"].max()) + 1, np.int64)
            for phase, steps in self.steps.items():
                if phase < len(n_marked):
                    n_marked[phase] = steps
            step = passes["step"][rows]
            passes["step"][rows] = np.where(step >= n_marked[passes["phase"][rows]], -1, step)


class SessionRemap:
    """From the numbers of a session to those of the whole recording.

    To ``salvage`` what is left of a log, a number may be missing, until another segment's log has it.
    """

    def __init__(self, offset: SessionOffset, *, salvage: bool = False) -> None:
        self.offset = offset
        self._salvage = salvage
        self.began = 0.0
        self._numbers: dict[str, list[int]] = {kind: [] for kind in ("entry", "phase", "site", "spec", META)}

    def count(self, kind: str) -> int:
        """How many of a kind the session has so far."""
        return len(self._numbers[kind])

    def add(self, kind: str, number: int, table: Interned[Any], item: Any) -> None:
        """Note what a number stands for. Every segment says all of it again, so most of it is known."""
        numbers = self._numbers[kind]
        if number < len(numbers) and numbers[number] >= 0 and table[numbers[number]] == item:
            return
        if self._salvage and number < 1 << 20:
            numbers += [MISSING] * (number + 1 - len(numbers))
            if numbers[number] == MISSING:
                numbers[number] = table.add(item)
                return
        if number != len(numbers):
            raise DamagedFileError(f"entry {number} of the log, {item!r:.80}, is out of order")
        recorded = table.add(item)
        # Phases of different ranks may have the same name and are still two.
        numbers.append(table.append(item) if kind == "phase" and recorded in numbers else recorded)

    def number(self, kind: str, number: int) -> int:
        """The number in the recording of what has a number in the session."""
        numbers = self._numbers[kind]
        if not 0 <= number < len(numbers) or numbers[number] == MISSING:
            raise DamagedFileError(f"the log names the {kind} {number}, but there are {len(numbers)}")
        return numbers[number]

    def is_known(self, rows: Rows, kind: str) -> npt.NDArray[np.bool_]:
        """Of which rows the log says what the number of this kind stands for."""
        numbers = np.array([*self._numbers[kind], MISSING])
        column = rows[kind]
        is_number = (column >= 0) & (column < len(numbers) - 1)
        known: npt.NDArray[np.bool_] = is_number & (numbers[np.where(is_number, column, -1)] != MISSING)
        return known

    def meta(self, meta: RecordMeta) -> RecordMeta:
        """A meta with the numbers of the recording."""

        def renumbered(events: tuple[tuple[int, int, str], ...] | None) -> tuple[tuple[int, int, str], ...] | None:
            return events and tuple((self.number("site", site), count, label) for site, count, label in events)

        site, spec = self.number("site", meta.site), self.number("spec", meta.spec)
        recent_events, recent_ops = renumbered(meta.recent_events), renumbered(meta.recent_ops)
        if (site, spec, recent_events, recent_ops) == (meta.site, meta.spec, meta.recent_events, meta.recent_ops):
            return meta  # as in the first session of each file: no copy for each of hundreds of files
        return msgspec.structs.replace(meta, site=site, spec=spec, recent_events=recent_events, recent_ops=recent_ops)

    def data(self, info: DataInfo) -> DataInfo | None:
        """What data is, with the numbers of the recording; None where its site is not known yet."""
        if info.part == "step":
            return msgspec.structs.replace(info, phase=self.number("phase", info.phase))
        if info.site >= self.count("site") or info.spec >= self.count("spec"):
            return None
        return msgspec.structs.replace(info, site=self.number("site", info.site), spec=self.number("spec", info.spec))

    def origin(self, origin: Origin) -> Origin:
        """One of the recordings that were merged, with the numbers of the recording."""
        phases = tuple(self.number("phase", phase) for phase in origin.phases)
        return msgspec.structs.replace(origin, first_pass=origin.first_pass + self.offset.passes, phases=phases)

    def info(self, info: PassInfo) -> PassInfo:
        """A pass with the numbers of the recording."""
        phase, entry = self.number("phase", info.phase), self.number("entry", info.entry)
        return msgspec.structs.replace(
            info,
            index=info.index + self.offset.passes,
            phase=phase,
            entry=entry,
            entry_pass=info.entry_pass + self.offset.entries.get(entry, 0),
            step=info.step + self.offset.steps.get(phase, 0),
        )

    def passes(self, rows: Rows, *, seconds_later: float) -> None:
        """Renumber passes in place; ``seconds_later`` is when the session began, after the first one."""
        self._renumber(rows, "entry")
        self._renumber(rows, "phase")
        rows["pass_index"] += self.offset.passes
        _add_by_key(rows["entry_pass"], self.offset.entries, rows["entry"])
        _add_by_key(rows["step"], self.offset.steps, rows["phase"])
        rows["started"] += seconds_later

    def records(self, rows: Rows) -> None:
        """Renumber records in place."""
        self._renumber(rows, META)
        if self.offset.data:
            for name in ("data", "transformed_data"):
                rows[name][rows[name] >= 0] += self.offset.data

    def marks(self, rows: Rows) -> None:
        """Renumber marks in place."""
        self._renumber(rows, "phase")
        rows["data"] += self.offset.data

    def steps(self, rows: Rows, phase: int) -> None:
        """Renumber the rows of the steps of a phase in place."""
        rows["step"] += self.offset.steps.get(phase, 0)
        rows["order"] += self.offset.marks

    def _renumber(self, rows: Rows, kind: str) -> None:
        column, numbers = rows[kind], self._numbers[kind]
        if len(column) and not 0 <= column.min() <= column.max() < len(numbers):
            raise DamagedFileError(f"a row names the {kind} {column.max()}, but there are {len(numbers)}")
        if numbers != list(range(len(numbers))):  # in the first session they are those of the recording
            rows[kind] = np.array(numbers, column.dtype)[column]


def _add_by_key(column: Rows, amounts: Mapping[int, int], keys: Rows) -> None:
    """Add to each number the amount of its key, in place."""
    if amounts:
        different_keys, which = np.unique(keys, return_inverse=True)
        column += np.array([amounts.get(key, 0) for key in different_keys.tolist()], np.int64)[which]
