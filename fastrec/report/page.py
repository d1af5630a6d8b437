"""The page of a run: an overview of all sites over time, and of each site the curves of its measures.

    write_report({"PPO, seed 1": statistics}, "report.html")
    write_report({"seed 1": first, "seed 2": second}, "seeds.html")    # their curves in one plot each

It is made from statistics and nothing else, so that it is the same for a recording and for a sink that kept no values.
The document holds its data in columns, of four digits each, and the scripts that draw them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any

import numpy as np
import numpy.typing as npt

from fastrec._errors import OptionError
from fastrec._web.document import asset, document, write_page
from fastrec.report.measures import MEASURES, PLOTS
from fastrec.report.run import RunStatistics, SiteStatistics, TimeBins

STYLES = ("vendor/uplot/uPlot.min.css", "report/page.css")
SCRIPTS = ("report/data.js", "report/overview.js", "report/site.js", "report/main.js")


def write_report(
    runs: Mapping[str, RunStatistics], path: str | PathLike[str], *, title: str | None = None, overwrite: bool = False
) -> None:
    """Write a page of the statistics of one run or several.

    >>> import torch, fastrec
    >>> from fastrec.report import write_report
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU())
    >>> runs = {}
    >>> for seed in (1, 2):
    ...     recording = fastrec.record(model, torch.randn(32, 4), keep_op=True)
    ...     runs[f"seed {seed}"] = recording.describe()
    >>> write_report(runs, "seeds.html")

    Arguments:
        runs: statistics by the name of the run, which is shown.
        path: where to write it.
        title: what stands above; by default the names.
        overwrite: whether to write over a file that is there.

    Raises RecordingExistsError where there is a file, RecordingFileError where it can't be written, OptionError without
    runs.
    """
    if not runs:
        raise OptionError("write_report({}): give the statistics of at least one run")
    write_runs(lambda: runs, path, title=title, overwrite=overwrite)


def write_runs(
    make: Callable[[], Mapping[str, RunStatistics]],
    path: str | PathLike[str],
    *,
    title: str | None = None,
    overwrite: bool = False,
) -> None:
    """The same for statistics that are made when it is known that the page may be written."""

    def page() -> str:
        runs = make()
        return report_html(runs, title=" and ".join(runs) if title is None else title)

    write_page(page, path, overwrite=overwrite)


def report_html(runs: Mapping[str, RunStatistics], *, title: str) -> str:
    """The page as text."""
    return document(
        title,
        body=asset("report/body.html"),
        styles=[asset(path) for path in STYLES],
        # One scope for all but the library, which the browser sees first.
        scripts=[asset("vendor/uplot/uPlot.iife.min.js"), _in_one_scope([asset(path) for path in SCRIPTS])],
        data=report_data(runs, title),
    )


def _in_one_scope(scripts: list[str]) -> str:
    return "\n".join(['(() => {\n"use strict";', *scripts, "start();\n})();"])


def report_data(runs: Mapping[str, RunStatistics], title: str) -> dict[str, Any]:
    """What the page's scripts read."""
    return {
        "v": 1,
        "title": title,
        "plots": PLOTS,
        "measures": [
            {
                "name": measure.name,
                "title": measure.title,
                "scale": measure.scale,
                "definition": measure.definition,
                "source": measure.source,
                "alarm": measure.alarm,
            }
            for measure in MEASURES
        ],
        "runs": [
            {
                "name": name,
                "time": _time(run.time),
                "sites": [_site(site, run.time) for site in run.values()],
            }
            for name, run in runs.items()
        ],
    }


def _time(time: TimeBins) -> dict[str, Any]:
    columns = {
        name: getattr(time, name).tolist()
        for name in ("first_pass", "last_pass", "passes", "first_mark", "last_mark", "episode_ends")
    }
    spans = {name: [round(value, 3) for value in getattr(time, name).tolist()] for name in ("started", "ended")}
    return {**columns, **spans, "phases": {name: counts.tolist() for name, counts in time.phases.items()}}


def _site(site: SiteStatistics, time: TimeBins) -> dict[str, Any]:
    curves = {measure.name: _column(site[measure.name]) for measure in MEASURES}
    bad = None
    if site.bad is not None:
        bad = {"kind": site.bad.kind, "pass": site.bad.pass_index, "text": str(site.bad)}
    return {
        "name": site.name,
        "kind": site.site.kind,
        "type": site.site.layer_type,
        "modules": [[frame.module_address, frame.module_type] for frame in site.frames],
        "records": site.records,
        "units": site.units,
        "axis": site.unit_axis if site.unit_axis is not None and site.unit_axis >= 0 else None,
        "notes": site.notes,
        "bad": bad,
        "curves": {name: column for name, column in curves.items() if any(value is not None for value in column)},
    }


def _column(values: npt.NDArray[np.float64]) -> list[float | None]:
    """Numbers of four digits, which is more than a screen shows; None where there is none."""
    return [_rounded(value) for value in values.tolist()]


def _rounded(value: float) -> float | int | None:
    if not math.isfinite(value):
        return None
    short = float(f"{value:.4g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short
