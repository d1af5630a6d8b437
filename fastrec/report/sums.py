"""What is added up of the values of one site in one stretch of a run; measures are read from it.

>>> sums = Sums(SiteTraits(is_activation=True))
>>> sums.add(np.array([[0.0, 1.0], [0.0, 3.0]], np.float32), records=1)  # two rows of two units
>>> sums.measures()["dead_units"], sums.measures()["mean"]
(0.5, 1.0)

Each number of it is a sum, an extreme or a count, so two stretches are put together by adding (``merge``), and no value
is kept. Values that are not finite are counted, and left out of everything else.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from fastrec.report.histogram import CELLS, Counts, cell_counts, quantiles
from fastrec.report.measures import MAX_RANK_UNITS, MAX_UNITS, MEASURES, QUANTILES, SIGMOID_EDGES, TANH_EDGE, TAUS
from fastrec.report.rank import MIN_ROWS, Gram, effective_rank, gram_of
from fastrec.report.units import SiteTraits
from fastrec.report.values import Array, by_units, rows_of

Floats = npt.NDArray[np.float64]

PIECE = 1 << 17
"""So many values are looked at together, at least a row."""

# Squares of larger or smaller numbers than these leave the range of 32 bits.
_WIDE, _NARROW = 1e15, 1e-15
_HUGE = 1e150  # and squares of these the range of 64 bits: there is no standard deviation and no rank then

_FLOAT32_MAX = float(np.finfo(np.float32).max)


class BadValue(msgspec.Struct, frozen=True, order=True):
    """Where a value that is not finite came first."""

    pass_index: int
    kind: Literal["nan", "inf"]


class UnitSums:
    """Sums over the inputs of a stretch, for each unit: of the values and of their absolute values.

    ``missing`` counts the values of each unit that were not finite; None where none was.
    """

    __slots__ = ("absolute", "inputs", "missing", "nonzero", "signed")

    def __init__(self, units: int) -> None:
        self.inputs = 0
        self.signed: Floats = np.zeros(units)
        self.absolute: Floats = np.zeros(units)
        self.nonzero: npt.NDArray[np.bool_] = np.zeros(units, np.bool_)
        self.missing: npt.NDArray[np.int64] | None = None

    def add(self, other: UnitSums) -> None:
        """Take in the sums of another stretch."""
        self.inputs += other.inputs
        self.signed += other.signed
        self.absolute += other.absolute
        self.nonzero |= other.nonzero
        if other.missing is not None:
            self.missing = other.missing if self.missing is None else self.missing + other.missing

    @property
    def seen(self) -> Any:
        """How many finite values there were: a number, or one for each unit."""
        return self.inputs if self.missing is None else self.inputs - self.missing

    def dead(self) -> float:
        """The share of units that were 0 on every input."""
        return float(np.mean(~self.nonzero))

    def dormant(self, tau: float) -> float:
        """The share of units whose score is at most ``tau``."""
        means = self.absolute / np.maximum(self.seen, 1)
        overall = means.mean()
        # Where all units are 0 none has a share of anything.
        return float(np.mean(means <= tau * overall)) if overall > 0 else 1.0

    def mean_vector(self) -> Floats:
        """The mean of each unit."""
        vector: Floats = self.signed / np.maximum(self.seen, 1)
        return vector


class Sums:
    """The sums of one site in one stretch.

    Arguments:
        traits: what of the site decides which measures it has.
        ranks: whether to add up what effective ranks take.
    """

    __slots__ = (
        *(
            "bad",
            "counts",
            "finite",
            "gram",
            "inf",
            "least",
            "mean",
            "most",
            "nan",
            "norm_counts",
            "norm_most",
            "norm_sum",
        ),
        *(
            "norms",
            "rank_parts",
            "rank_sum",
            "ranks",
            "records",
            "saturated",
            "spread",
            "traits",
            "unit_count",
            "units",
            "units_vary",
            "values",
        ),
        *("zeros", "_rank_rows"),
    )

    def __init__(self, traits: SiteTraits, *, ranks: bool = False) -> None:
        self.traits = traits
        self.ranks = ranks
        self.records = self.values = self.finite = self.zeros = self.nan = self.inf = self.saturated = self.norms = 0
        self.least, self.most, self.norm_most = math.inf, -math.inf, 0.0
        self.mean = self.spread = self.norm_sum = self.rank_sum = 0.0
        self.rank_parts = 0  # whose ranks were computed when nothing more came to them
        self.counts: Counts = np.zeros(CELLS, np.int64)
        self.norm_counts: Counts = np.zeros(CELLS, np.int64)
        self.unit_count: int | None = None
        self.units: UnitSums | None = None
        self.units_vary = False
        self.gram: Gram | None = None
        self._rank_rows: list[Array] = []
        self.bad: BadValue | None = None

    def add_values(
        self, values: Array, axis: int, passes: npt.NDArray[np.int64] | None = None, rank_step: int = 1
    ) -> None:
        """Take in records of one shape.

        Arguments:
            values: [records, *shape].
            axis: the axis of ``shape`` that counts the units; -1 where it has none.
            passes: the pass of each record, to tell where a value was not finite.
            rank_step: each so many-th row counts for the rank.
        """
        array, records = by_units(values, axis), len(values)
        if not array.size:
            self.records += records
            return
        each = len(array) // records
        # In pieces that stay in the cache: of whole records, or of one that is larger than that.
        most = max(1, PIECE * len(array) // array.size)
        most -= most % each if most > each else 0
        for start in range(0, len(array), most):
            piece = array[start : start + most]
            first, stop = start // each, -(-(start + len(piece)) // each)
            begun = stop - first if start % each == 0 else 0
            self.add(piece, begun, None if passes is None else passes[first:stop], rank_step)

    def add(self, array: Array, records: int, passes: npt.NDArray[np.int64] | None = None, rank_step: int = 1) -> None:
        """Take in the values of some records, or a part of one.

        Arguments:
            array: [rows, units] or [outer, units, inner], as ``by_units`` makes it.
            records: how many records begin in it.
            passes: the pass of each record that has a part in it.
            rank_step: each so many-th row counts for the rank.
        """
        self.records += records
        if not array.size:
            return
        self.values += array.size
        # Comparing is quicker than np.count_nonzero, which looks at each float's bits.
        self.zeros += int(np.count_nonzero(array == 0))
        finite = None
        with np.errstate(invalid="ignore"):
            least, most = float(array.min()), float(array.max())
        if not (math.isfinite(least) and math.isfinite(most)):
            finite = np.isfinite(array)
            self._count_bad(array, finite, passes)
            if not finite.any():
                self._add_units(np.zeros_like(array), finite, is_signed=False)
                return
            least, most = float(array[finite].min()), float(array[finite].max())
        self.least, self.most = min(self.least, least), max(self.most, most)
        peak = max(abs(least), abs(most))
        if array.dtype == np.float32 and not _NARROW < peak < _WIDE and peak:
            array = array.astype(np.float64)
        values = array if finite is None else array[finite]
        if finite is not None:
            array = np.where(finite, array, 0)
        total = self._add_units(array, finite, is_signed=least < 0)
        self._add_values(values, total / values.size, peak)
        whole: Any = None if finite is None else finite.all(axis=1)
        self._add_norms(array, whole, peak)
        if peak > _HUGE:
            self.ranks, self.gram, self._rank_rows = False, None, []
        if self.ranks and not self.units_vary:
            self._add_gram(array, finite, rank_step)

    def merge(self, other: Sums) -> None:
        """Take in the sums of another stretch of the same site."""
        self._add_moments(other.finite, other.mean, other.spread)
        for name in ("records", "values", "zeros", "nan", "inf", "saturated", "norms", "norm_sum"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.least, self.most = min(self.least, other.least), max(self.most, other.most)
        self.norm_most = max(self.norm_most, other.norm_most)
        self.counts += other.counts
        self.norm_counts += other.norm_counts
        if other.bad is not None:
            self.bad = other.bad if self.bad is None else min(self.bad, other.bad)
        self.rank_sum += other.rank_sum
        self.rank_parts += other.rank_parts
        self._meet_units(other.unit_count)
        if other.units_vary:
            self._forget_units()
        elif not self.units_vary and other.units is not None and self.units is not None:
            self.units.add(other.units)
            self._use_rows()
            other._use_rows()
            if self.gram is not None and other.gram is not None:
                self.gram += other.gram
            elif other.gram is not None:
                self.gram = other.gram.copy()

    def close_rank(self) -> None:
        """Compute the rank of what came so far, and forget what it takes, which is as large as all units squared.

        The rank of stretches that are put together afterwards is the mean of theirs.
        """
        self._use_rows()
        if self.gram is not None:
            self.rank_sum += effective_rank(self.gram)
            self.rank_parts += 1
            self.gram = None

    def measures(self, first: Floats | None = None) -> dict[str, float]:
        """All measures by name, NaN where one is not said of this site, or nothing was recorded.

        Arguments:
            first: the mean vector of the first stretch, for the drift; by default this is the first one.
        """
        found = dict.fromkeys((measure.name for measure in MEASURES), math.nan)
        if not self.values:
            return found
        found |= {"zeros": self.zeros / self.values, "nan": float(self.nan), "inf": float(self.inf)}
        if self.finite:
            found |= {"mean": self.mean, "std": math.sqrt(self.spread / self.finite)}
            found |= {"min": self.least, "max": self.most}
            shares = quantiles(self.counts, list(QUANTILES.values()), self.least, self.most)
            found |= dict(zip(QUANTILES, shares.tolist(), strict=True))
            if self.traits.saturating:
                found["saturated"] = self.saturated / self.finite
        if self.norms:
            low, high = quantiles(self.norm_counts, [0.05, 0.95], 0.0, self.norm_most).tolist()
            found |= {"norm": self.norm_sum / self.norms, "norm_q05": low, "norm_q95": high}
        if self.units is not None:
            found |= self._unit_measures(self.units, first)
        self._use_rows()
        parts = self.rank_parts + (self.gram is not None)
        if parts:
            found["rank"] = (self.rank_sum + (0 if self.gram is None else effective_rank(self.gram))) / parts
        return found

    def _unit_measures(self, units: UnitSums, first: Floats | None) -> dict[str, float]:
        found = {"dead_units": units.dead()}
        if self.traits.is_activation:
            found |= {f"dormant_{tau:g}": units.dormant(tau) for tau in TAUS}
        vector = units.mean_vector()
        found["drift"] = cosine(vector, vector if first is None or len(first) != len(vector) else first)
        return found

    def _count_bad(self, array: Array, finite: npt.NDArray[np.bool_], passes: npt.NDArray[np.int64] | None) -> None:
        """Count what is not finite, and note where it came first."""
        nan = np.isnan(array)
        count = int(np.count_nonzero(nan))
        self.nan += count
        self.inf += int(finite.size - np.count_nonzero(finite)) - count
        if passes is None:
            return
        record = int(np.argmax(~finite.reshape(len(passes), -1).all(axis=1)))
        kind: Literal["nan", "inf"] = "nan" if nan.reshape(len(passes), -1)[record].any() else "inf"
        bad = BadValue(int(passes[record]), kind)
        self.bad = bad if self.bad is None else min(self.bad, bad)

    def _add_values(self, values: Array, mean: float, peak: float) -> None:
        """Take in the moments of finite values, put them into the cells of the histogram, count those that saturate."""
        if peak > _HUGE:
            self.finite, self.spread = self.finite + values.size, math.nan
            self.mean += (mean - self.mean) * values.size / self.finite
        else:
            self._add_spread(values, mean)
        narrow = values
        if values.dtype != np.float32:
            narrow = values.clip(-_FLOAT32_MAX, _FLOAT32_MAX).astype(np.float32)
        self.counts += cell_counts(np.ascontiguousarray(narrow))
        if self.traits.saturating == "tanh":
            self.saturated += int(np.count_nonzero(np.abs(values) > TANH_EDGE))
        elif self.traits.saturating == "sigmoid":
            low, high = SIGMOID_EDGES
            self.saturated += int(np.count_nonzero(values < low)) + int(np.count_nonzero(values > high))

    def _add_spread(self, values: Array, mean: float) -> None:
        """Take in the mean of finite values and their squares about it."""
        # Squares about the mean of the piece: about 0 they would lose a small spread of large values to rounding.
        middle = values.dtype.type(mean)
        apart = (values - middle).reshape(-1)
        spread = float(apart @ apart) - values.size * (mean - float(middle)) ** 2
        self._add_moments(values.size, mean, max(0.0, spread))

    def _add_moments(self, count: int, mean: float, spread: float) -> None:
        """Take in the mean and the sum of squares about it of so many values (Chan, Golub and LeVeque 1979)."""
        if not count:
            return
        apart, together = mean - self.mean, self.finite + count
        self.spread += spread + apart * apart * self.finite * count / together
        self.mean += apart * count / together
        self.finite = together

    def _add_norms(self, array: Array, whole: npt.NDArray[np.bool_] | None, peak: float) -> None:
        """Take in the norms of the rows that are whole."""
        scale = peak if peak > _HUGE else 1.0
        if scale > 1:
            array = array / scale
        squares = np.einsum("ru,ru->r" if array.ndim == 2 else "rus,rus->rs", array, array)
        norms = np.sqrt(squares if whole is None else squares[whole])
        if scale > 1:
            norms = norms * scale
        if not norms.size:
            return
        self.norms += norms.size
        self.norm_sum += float(norms.sum(dtype=np.float64))
        self.norm_most = max(self.norm_most, float(norms.max()))
        narrow = norms if norms.dtype == np.float32 else norms.clip(max=_FLOAT32_MAX).astype(np.float32)
        self.norm_counts += cell_counts(np.ascontiguousarray(narrow))

    def _add_units(self, array: Array, finite: npt.NDArray[np.bool_] | None, *, is_signed: bool) -> float:
        """Take in the sums of each unit; the sum of all values."""
        axes: Any = 0 if array.ndim == 2 else (0, 2)
        signed = array.sum(axis=axes, dtype=np.float64)
        total = float(signed.sum())
        self._meet_units(array.shape[1])
        if self.units is None:
            return total
        own = UnitSums(0)
        own.inputs = array.size // array.shape[1]
        own.absolute = np.abs(array).sum(axis=axes, dtype=np.float64) if is_signed else signed
        own.signed = signed
        own.nonzero = own.absolute > 0
        if finite is not None:
            own.missing = np.count_nonzero(~finite, axis=axes)
            own.nonzero = own.nonzero | (own.missing > 0)
        chosen = spread(array.shape[1], MAX_UNITS)
        if chosen is not None:
            own.absolute, own.signed, own.nonzero = own.absolute[chosen], own.signed[chosen], own.nonzero[chosen]
            own.missing = None if own.missing is None else own.missing[chosen]
        self.units.add(own)
        return total

    def _add_gram(self, array: Array, finite: npt.NDArray[np.bool_] | None, step: int) -> None:
        rows = rows_of(array, step)
        if finite is not None:
            rows = rows[rows_of(finite, step).all(axis=1)]
        chosen = spread(rows.shape[1], MAX_RANK_UNITS)
        self._rank_rows.append(rows if chosen is None else rows[:, chosen])
        # Many small products take longer than a large one, above all where threads are started for each.
        if sum(map(len, self._rank_rows)) >= MIN_ROWS:
            self._use_rows()

    def _use_rows(self) -> None:
        """Multiply the rows that wait."""
        if self._rank_rows:
            own = gram_of(np.concatenate(self._rank_rows))
            self.gram = own if self.gram is None else self.gram + own
            self._rank_rows = []

    def _meet_units(self, count: int | None) -> None:
        """Measures of units take the same units in all values."""
        if count is None:
            return
        if self.unit_count is None:
            self.unit_count = count
            self.units = None if self.units_vary else UnitSums(min(count, MAX_UNITS))
        elif self.unit_count != count:
            self._forget_units()

    def _forget_units(self) -> None:
        self.units_vary = True
        self.units = self.gram = None
        self._rank_rows = []


def spread(count: int, most: int) -> npt.NDArray[np.int64] | None:
    """Which of so many units are looked at, spread evenly; None where all are."""
    return None if count <= most else np.linspace(0, count - 1, most).astype(np.int64)


def cosine(a: Floats, b: Floats) -> float:
    """The cosine of the angle between two vectors; NaN where one is 0."""
    sizes = float(np.abs(a).max(initial=0.0)), float(np.abs(b).max(initial=0.0))
    if not (min(sizes) > 0 and max(sizes) < math.inf):
        return math.nan
    a, b = a / sizes[0], b / sizes[1]  # so that no square leaves the range of numbers
    return max(-1.0, min(1.0, float(a @ b) / (float(np.linalg.norm(a)) * float(np.linalg.norm(b)))))
