"""What loggers read of a sink: the measures of what was recorded since they last asked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from fastrec._errors import OptionError, did_you_mean
from fastrec.events.sites import Site
from fastrec.report.measures import BY_NAME
from fastrec.report.sums import Floats, Sums

LOGGED = ("mean", "std", "zeros", "dead_units", "dormant_0.025", "saturated", "norm", "nan", "inf", "drift")
"""What is handed over if nothing else is asked for."""


class StatisticsWindow:
    """The measures of a stretch of the run that begins where the one before was taken.

    >>> import torch, fastrec
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU())
    >>> sink = fastrec.sinks.StatisticsSink()
    >>> window = sink.window(["norm"])
    >>> with fastrec.Recorder(model, keep_op="relu", sink=sink):
    ...     out = model(torch.zeros(2, 4))
    ...     print(list(window.take()), window.take())
    ['norm/1/relu'] {}

    Arguments:
        measures: names of measures.
        update: what is called before it is read, so that it has all passes that ended.
    """

    def __init__(self, measures: Sequence[str], update: Callable[[], None]) -> None:
        for name in measures:
            if name not in BY_NAME:
                raise OptionError(f"there is no measure {name!r}; {did_you_mean(name, BY_NAME)}")
        self._measures = tuple(measures)
        self._update = update
        self._sums: dict[str, Sums] = {}
        self._first: dict[str, Floats] = {}

    def add(self, site: Site, sums: Sums) -> None:
        """Take in the sums of some passes."""
        self._sums.setdefault(site.name, Sums(sums.traits, ranks=sums.ranks)).merge(sums)

    def take(self) -> dict[str, float]:
        """What was measured since it was last taken, by "measure/site"; what is not said of a site is left out."""
        self._update()
        taken, self._sums = self._sums, {}
        found = {}
        for name, sums in taken.items():
            if sums.units is not None:
                self._first.setdefault(name, sums.units.mean_vector())
            figures = sums.measures(self._first.get(name))
            found.update({f"{measure}/{name}": figures[measure] for measure in self._measures})
        return {name: value for name, value in found.items() if not math.isnan(value)}
