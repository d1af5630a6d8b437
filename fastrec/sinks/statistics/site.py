"""The sums of one site in each time bin of a run that goes on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fastrec.events.sites import Catalog, PassInfo, Site
from fastrec.report.run import SiteStatistics, bad_step, curves_of
from fastrec.report.sums import BadValue, Floats, Sums
from fastrec.report.units import SiteTraits


class SiteSums:
    """What was added up of a site, by the numbers of the time bins."""

    def __init__(self, site: Site, *, ranks: bool) -> None:
        self.site = site
        self.axes: set[int] = set()
        self._traits = SiteTraits.of(site)
        self._ranks = ranks
        self._bins: dict[int, Sums] = {}
        self._bad: tuple[BadValue, int, int] | None = None  # with its step and phase

    def piece(self) -> Sums:
        """Sums of nothing yet."""
        return Sums(self._traits, ranks=self._ranks)

    def add(self, number: int, sums: Sums, infos: Iterable[PassInfo]) -> None:
        """Take in the sums of some passes of a bin."""
        bad = sums.bad
        if bad is not None and (self._bad is None or bad < self._bad[0]):
            info = next(info for info in infos if info.index == bad.pass_index)
            self._bad = bad, info.step, info.phase
        own = self._bins.get(number)
        if own is None:
            self._bins[number] = sums
        else:
            own.merge(sums)

    def widen(self) -> None:
        """Put the bins together two by two."""
        for number in sorted(self._bins):
            later = self._bins.pop(number)
            earlier = self._bins.setdefault(number // 2, later)
            if earlier is not later:
                earlier.merge(later)

    def close_ranks(self) -> None:
        """Nothing more comes to the bins: their ranks stay, and what those were computed from goes."""
        for sums in self._bins.values():
            sums.close_rank()

    def statistics(self, numbers: Sequence[int], catalog: Catalog, marked: set[int]) -> SiteStatistics:
        """The statistics of the bins with these numbers; ``marked`` are the phases that have steps."""
        first: Floats | None = None
        whole = Sums(self._traits)
        curves: list[dict[str, float] | None] = []
        for sums in map(self._bins.get, numbers):
            if sums is None:
                curves.append(None)
                continue
            if first is None and sums.units is not None:
                first = sums.units.mean_vector()
            curves.append(sums.measures(first))
            whole.merge(sums)
        bad = None
        if self._bad is not None:
            value, step, phase = self._bad
            has_step = step > 0 or (step == 0 and phase in marked)
            bad = bad_step(value, step if has_step else None, catalog.phases[phase])
        return SiteStatistics(self.site, curves_of(curves), whole, bad, min(self.axes) if len(self.axes) == 1 else None)
