"""Numbers and tables as plain text.

>>> text_table([("site", "zeros"), ("1/relu", "12 %")], left=("site",))
['site    zeros', '1/relu   12 %']
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fastrec.report.measures import Measure


def format_figure(measure: Measure, value: float) -> str:
    """One number of a measure, short enough for a table.

    >>> from fastrec.report.measures import BY_NAME
    >>> format_figure(BY_NAME["zeros"], 0.1234), format_figure(BY_NAME["mean"], 1234567.0)
    ('12.3 %', '1.23e+06')
    """
    if not math.isfinite(value):
        return "-"
    if measure.scale == "share":
        return _format_share(value)
    if measure.scale == "count":
        return f"{value:,.0f}"
    return f"{value:.3g}" if value else "0"


def _format_share(share: float) -> str:
    """A share in percent, which is "0 %" or "100 %" only where it is all of it."""
    if share in (0.0, 1.0):
        return f"{share:.0%}".replace("%", " %")
    percent = min(max(100 * share, 0.1), 99.9)
    return (
        f"{percent:.1f} %" if percent < 99.95 and (percent < 10 or percent > 99 or share < 0.2) else f"{percent:.0f} %"
    )


def format_trend(measure: Measure, values: npt.NDArray[np.float64]) -> str:
    """The number of the first bin and of the last; one where they read the same.

    >>> from fastrec.report.measures import BY_NAME
    >>> format_trend(BY_NAME["dead_units"], np.array([0.0, 0.25, np.nan, 0.5]))
    '0 % → 50 %'
    """
    finite = values[np.isfinite(values)]
    if not len(finite):
        return "-"
    first, last = format_figure(measure, float(finite[0])), format_figure(measure, float(finite[-1]))
    return first if first == last else f"{first} → {last}"


def text_table(rows: Sequence[Sequence[str]], left: Sequence[str] = ()) -> list[str]:
    """Lines of a heading and rows in columns; the columns of these names are aligned to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        parts = zip(row, widths, rows[0], strict=True)
        lines.append("  ".join(cell.ljust(w) if name in left else cell.rjust(w) for cell, w, name in parts).rstrip())
    return lines
