"""The log of a segment: sites, variants, specs and the like, one line of JSON each, with a checksum in front."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import msgspec
import torch

from fastrec._errors import DamagedFileError, SessionError
from fastrec.events.capture import CaptureSpec
from fastrec.events.context import PredicateFailure, RecordContext
from fastrec.events.sites import Catalog, Interned, Origin, PassInfo, Site, Variant
from fastrec.sinks._hdf5_layout import Bytes, DataInfo
from fastrec.sinks._hdf5_sessions import Before, SessionNumbers

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
            ("variant", catalog.variants),
            ("failure", catalog.failures),
        ]
        self._done = [0] * len(self._tables)

    def restart(self) -> None:
        """A new segment has none of them."""
        self._done = [0] * len(self._tables)

    def lines(self) -> Iterator[bytes]:
        """What was added since the last call."""
        # Failures and variants name the others, so their number is read first.
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


class _Failure(msgspec.Struct):
    """A predicate's failure as it is written: the event may be one of which no record was kept."""

    predicate: str
    error: str
    site: Site
    variant: Variant
    info: PassInfo
    time: float
    step: int | None


def _failure(failure: PredicateFailure) -> _Failure:
    ctx = failure.context
    return _Failure(failure.predicate, failure.error, ctx._site, ctx._variant, ctx._info, ctx._time, ctx._step)


_TOLD: dict[str, Callable[[Any], Any]] = {"spec": _told, "failure": _failure}


class Log:
    """What the logs of the segments say, put together."""

    def __init__(self) -> None:
        self.catalog = Catalog()
        self.facts: dict[str, Any] = {}
        self.samples: dict[int, str | int] = {}
        self.data: dict[tuple[int, int], DataInfo] = {}
        self.numbers = SessionNumbers(Before())
        self.starts: dict[int, set[int]] = {}
        self._failures = 0
        self._data: dict[tuple[int, int], DataInfo] = {}

    def begin_session(self, before: Before) -> None:
        """What is read from here on is of another session."""
        self.numbers, self._failures, self._data = SessionNumbers(before), 0, {}
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
            "variant": (catalog.variants, Variant),
            "entry": (catalog.entries, str),
            "phase": (catalog.phases, str),
        }
        if kind in tables:
            table, made_of = tables[kind]
            item = msgspec.json.decode(content, type=made_of)
            numbers.add(kind, number, table, numbers.variant(item) if kind == "variant" else item)
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
        variant = numbers.variant(made.variant)
        if len(variant.stack_passes) != len(made.site.frames):
            raise ValueError("a failure was in other modules than its site")
        info = numbers.info(made.info)
        step = None if made.step is None else info.step
        ctx = RecordContext(self.catalog, made.site, variant, info, made.time, step)
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
