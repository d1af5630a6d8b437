"""Sessions that follow each other in one recording: each numbers from 0, and is read as if it had gone on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from fastrec._errors import DamagedFileError
from fastrec.events.sites import Interned, Origin, PassInfo, Variant
from fastrec.sinks._hdf5_layout import DataInfo

Rows = npt.NDArray[Any]


class Before(msgspec.Struct):
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


class SessionNumbers:
    """From a session's own numbers to those of the whole recording."""

    def __init__(self, before: Before) -> None:
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

    def variant(self, given: Variant) -> Variant:
        """A variant, with the numbers of the recording in it."""

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
