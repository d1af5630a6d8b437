"""The log of a segment: sites, metas, specs and the like, one line of JSON each, with a checksum in front."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from fastrec._errors import DamagedFileError, SessionError
from fastrec.events.capture import CaptureSpec
from fastrec.events.context import PredicateFailure, RecordContext
from fastrec.events.sites import Catalog, Interned, Origin, PassInfo, RecordMeta, Site
from fastrec.sinks.hdf5.layout import Bytes, DataInfo

_encode = msgspec.json.Encoder(enc_hook=repr).encode


def line(kind: str, number: int, content: Any) -> bytes:
    """One entry, as it is written."""
    return signed(_encode([kind, number, content]))


def signed(text: bytes) -> bytes:
    """A line of JSON with its checksum in front."""
    return b"%08x %s\n" % (zlib.crc32(text), text)


def checked(text: bytes) -> bytes | None:
    """The JSON of a line, None where its checksum does not fit."""
    fits = len(text) > 9 and text[8:9] == b" " and b"%08x" % zlib.crc32(text[9:]) == text[:8]
    return text[9:] if fits else None


class CatalogLog:
    """The entries of a catalog that a segment does not have yet."""

    def __init__(self, catalog: Catalog) -> None:
        self._tables: list[tuple[str, Interned[Any] | list[Any]]] = [
            ("entry", catalog.entries),
            ("phase", catalog.phases),
            ("site", catalog.sites),
            ("spec", catalog.specs),
            ("variant", catalog.metas),
            ("failure", catalog.failures),
        ]
        self._done = [0] * len(self._tables)

    def restart(self) -> None:
        """A new segment has none of them."""
        self._done = [0] * len(self._tables)

    def lines(self) -> Iterator[bytes]:
        """What was added since the last call."""
        # Failures and metas name the others, so their number is read first.
        lengths = [len(table) for _, table in reversed(self._tables)][::-1]
        for i, (kind, table) in enumerate(self._tables):
            for number in range(self._done[i], lengths[i]):
                item = table[number]
                yield line(kind, number, _TOLD[kind](item) if kind in _TOLD else item)
        self._done = lengths


_Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]


class StoredTransform:
    """Stands for a transform that a file can't hold: its name, to be read."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, value: torch.Tensor) -> torch.Tensor:
        raise SessionError(f"the transform {self.name} was applied while recording; a file keeps its name alone")

    def __repr__(self) -> str:
        return f"<transform {self.name}>"


def _told(spec: CaptureSpec) -> dict[str, Any]:
    fields = {name: getattr(spec, name) for name in CaptureSpec.__struct_fields__}
    if spec.dtype is not None:
        fields["dtype"] = str(spec.dtype).removeprefix("torch.")
    if spec.device is not None:
        fields["device"] = str(torch.device(spec.device))
    if spec.transform is not None:
        fields["transform"] = getattr(spec.transform, "__qualname__", None) or repr(spec.transform)
    return fields


class _Failure(msgspec.Struct, rename={"meta": "variant"}):
    """A predicate's failure as it is written: the event may be one of which no record was kept.

    Files call the shared facts of records a variant; the name in them stays.
    """

    predicate: str
    error: str
    site: Site
    meta: RecordMeta
    info: PassInfo
    time: float
    step: int | None


def _failure(failure: PredicateFailure) -> _Failure:
    ctx = failure.context
    return _Failure(failure.predicate, failure.error, ctx._site, ctx._meta, ctx._info, ctx._time, ctx._step)


_TOLD: dict[str, Callable[[Any], Any]] = {"spec": _told, "failure": _failure}


class Log:
    """What the logs of the segments say, put together."""

    def __init__(self) -> None:
        self.catalog = Catalog()
        self.facts: dict[str, Any] = {}
        self.samples: dict[int, str | int] = {}
        self.data: dict[tuple[int, int], DataInfo] = {}
        self.numbers = SessionRemap(SessionOffset())
        self.starts: dict[int, set[int]] = {}
        self._failures = 0
        self._data: dict[tuple[int, int], DataInfo] = {}

    def begin_session(self, before: SessionOffset) -> None:
        """What is read from here on is of another session."""
        self.numbers, self._failures, self._data = SessionRemap(before), 0, {}
        for phase, steps in before.steps.items():
            self.starts.setdefault(phase, set()).add(steps)

    def settle(self) -> None:
        """All logs were read that there are: what one says of data may name what only the next one tells."""
        waiting = {}
        for (segment, number), info in self._data.items():
            known = self.numbers.data(info)
            if known is None:
                waiting[segment, number] = info
            else:
                self.data[segment, number + self.numbers.before.data] = known
        self._data = waiting

    def read(self, segment: int, data: Bytes) -> int:
        """Take in the log of one segment, up to its first line that is not whole; the bytes of the whole ones."""
        end = 0
        for text in data.tobytes().split(b"\n"):
            entry = checked(text)
            if entry is None:
                break
            end += len(text) + 1
            try:
                kind, number, content = msgspec.json.decode(entry, type=tuple[str, int, msgspec.Raw])
                self._add(segment, kind, number, content)
            except (msgspec.DecodeError, ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
                raise DamagedFileError(f"the log holds an entry that makes no sense: {error}") from error
        return end

    def _add(self, segment: int, kind: str, number: int, content: msgspec.Raw) -> None:
        catalog, numbers = self.catalog, self.numbers
        tables: dict[str, tuple[Interned[Any], Any]] = {
            "site": (catalog.sites, Site),
            "variant": (catalog.metas, RecordMeta),
            "entry": (catalog.entries, str),
            "phase": (catalog.phases, str),
        }
        if kind in tables:
            table, made_of = tables[kind]
            item = msgspec.json.decode(content, type=made_of)
            numbers.add(kind, number, table, numbers.meta(item) if kind == "variant" else item)
        elif kind == "spec" and number >= numbers.count("spec"):
            numbers.add(kind, number, catalog.specs, _spec_of(msgspec.json.decode(content, type=dict[str, Any])))
        elif kind == "data":
            self._data[segment, number] = msgspec.json.decode(content, type=DataInfo)
        elif kind in ("sample", "halted"):
            made_of = str | int if kind == "sample" else str
            told: dict[int, Any] = self.samples if kind == "sample" else catalog.halted
            told[number + numbers.before.passes] = msgspec.json.decode(content, type=made_of)
        elif kind == "failure" and number >= self._failures:
            self._failures = number + 1
            catalog.failures.append(self._failure(msgspec.json.decode(content, type=_Failure)))
        elif kind == "origin" and number >= len(catalog.origins):
            catalog.origins.append(numbers.origin(msgspec.json.decode(content, type=Origin)))
        elif kind == "starts":
            phase = numbers.of("phase", number)
            first = numbers.before.steps.get(phase, 0)
            found = msgspec.json.decode(content, type=list[_Count])
            self.starts.setdefault(phase, set()).update(first + start for start in found)
        elif kind == "session":
            facts = msgspec.json.decode(content, type=dict[str, Any])
            header = msgspec.convert(facts["header"], dict[str, Any])
            numbers.began = float(facts["began"])
            if not self.facts:
                self.facts, catalog.header = facts, header

    def _failure(self, made: _Failure) -> PredicateFailure:
        numbers = self.numbers
        meta = numbers.meta(made.meta)
        if len(meta.stack_passes) != len(made.site.frames):
            raise ValueError("a failure was in other modules than its site")
        info = numbers.info(made.info)
        step = None if made.step is None else info.step
        ctx = RecordContext(self.catalog, made.site, meta, info, made.time, step)
        return PredicateFailure(made.predicate, ctx, made.error)


def _spec_of(fields: dict[str, Any]) -> CaptureSpec:
    if fields["dtype"] is not None:
        fields["dtype"] = torch_dtype_of(fields["dtype"])
    if fields["transform"] is not None:
        fields["transform"] = StoredTransform(fields["transform"])
    return CaptureSpec(**fields)


def torch_dtype_of(name: str) -> torch.dtype:
    """A dtype by its name; anything else is a DamagedFileError."""
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise DamagedFileError(f"{name!r} is no dtype that this torch knows")
    return found


Rows = npt.NDArray[Any]


class SessionOffset(msgspec.Struct):
    """How much there is in the sessions before one; by number of the phase or entry where it differs between them."""

    passes: int = 0
    marks: int = 0
    data: int = 0
    steps: Mapping[int, int] = {}
    entries: Mapping[int, int] = {}

    def leave_open(self, passes: Rows) -> None:
        """Take passes out of the step that the sessions before left open, in place: the next one begins another."""
        rows = np.flatnonzero(passes["pass_index"] < self.passes)
        if len(rows):
            marked = np.zeros(int(passes["phase"].max()) + 1, np.int64)
            for phase, steps in self.steps.items():
                if phase < len(marked):
                    marked[phase] = steps
            step = passes["step"][rows]
            passes["step"][rows] = np.where(step >= marked[passes["phase"][rows]], -1, step)


class SessionRemap:
    """From a session's own numbers to those of the whole recording."""

    def __init__(self, before: SessionOffset) -> None:
        self.before = before
        self.began = 0.0
        self._known: dict[str, list[int]] = {kind: [] for kind in ("entry", "phase", "site", "spec", "variant")}

    def count(self, kind: str) -> int:
        """How many of a kind are known."""
        return len(self._known[kind])

    def add(self, kind: str, number: int, table: Interned[Any], item: Any) -> None:
        """Note what a number of this session means; each of its files tells all of it again, so most is known."""
        known = self._known[kind]
        if number < len(known) and table[known[number]] == item:
            return
        if number != len(known):
            raise DamagedFileError(f"entry {number} of the log, {item!r:.80}, is not where it belongs")
        found = table.add(item)
        # Phases of different ranks may have one name.
        known.append(table.append(item) if kind == "phase" and found in known else found)

    def of(self, kind: str, number: int) -> int:
        """The number in the recording of something."""
        if not 0 <= number < len(self._known[kind]):
            raise DamagedFileError(f"the log names the {kind} {number}, and there are {len(self._known[kind])}")
        return self._known[kind][number]

    def meta(self, given: RecordMeta) -> RecordMeta:
        """A meta, with the numbers of the recording in it."""

        def events(found: tuple[tuple[int, int, str], ...] | None) -> tuple[tuple[int, int, str], ...] | None:
            return found and tuple((self.of("site", site), count, label) for site, count, label in found)

        return msgspec.structs.replace(
            given,
            site=self.of("site", given.site),
            spec=self.of("spec", given.spec),
            recent_events=events(given.recent_events),
            recent_ops=events(given.recent_ops),
        )

    def data(self, info: DataInfo) -> DataInfo | None:
        """What rows of a data set are, with the numbers of the recording in it; None for those that no pass names."""
        if info.part == "step":
            return msgspec.structs.replace(info, phase=self.of("phase", info.phase))
        if info.site >= self.count("site") or info.spec >= self.count("spec"):
            return None
        return msgspec.structs.replace(info, site=self.of("site", info.site), spec=self.of("spec", info.spec))

    def origin(self, given: Origin) -> Origin:
        """One of the recordings that were merged, with the numbers of the recording in it."""
        phases = tuple(self.of("phase", phase) for phase in given.phases)
        return msgspec.structs.replace(given, first_pass=given.first_pass + self.before.passes, phases=phases)

    def info(self, given: PassInfo) -> PassInfo:
        """A pass, with the numbers of the recording in it."""
        phase, entry = self.of("phase", given.phase), self.of("entry", given.entry)
        return msgspec.structs.replace(
            given,
            index=given.index + self.before.passes,
            phase=phase,
            entry=entry,
            entry_pass=given.entry_pass + self.before.entries.get(entry, 0),
            step=given.step + self.before.steps.get(phase, 0),
        )

    def passes(self, rows: Rows, *, later: float) -> None:
        """Renumber passes in place; the session began so many seconds after the first one."""
        self._renumber(rows, "entry")
        self._renumber(rows, "phase")
        rows["pass_index"] += self.before.passes
        _add(rows["entry_pass"], self.before.entries, rows["entry"])
        _add(rows["step"], self.before.steps, rows["phase"])
        rows["started"] += later

    def records(self, rows: Rows) -> None:
        """Renumber records in place."""
        self._renumber(rows, "variant")
        if self.before.data:
            for name in ("data", "transformed_data"):
                rows[name][rows[name] >= 0] += self.before.data

    def marks(self, rows: Rows) -> None:
        """Renumber marks in place."""
        self._renumber(rows, "phase")
        rows["data"] += self.before.data

    def steps(self, rows: Rows, phase: int) -> None:
        """Renumber the rows of the steps of a phase in place."""
        rows["step"] += self.before.steps.get(phase, 0)
        rows["order"] += self.before.marks

    def _renumber(self, rows: Rows, kind: str) -> None:
        numbers, known = rows[kind], self._known[kind]
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < len(known):
            raise DamagedFileError(f"a row names the {kind} {numbers.max()}, and there are {len(known)}")
        if known != list(range(len(known))):  # in the first session the numbers are those of the recording
            rows[kind] = np.array(known, numbers.dtype)[numbers]


def _add(numbers: Rows, table: Mapping[int, int], keys: Rows) -> None:
    """Add to each number what a table has for its key."""
    if table:
        found, inverse = np.unique(keys, return_inverse=True)
        numbers += np.array([table.get(key, 0) for key in found.tolist()], np.int64)[inverse]
