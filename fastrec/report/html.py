"""Tables with small curves as HTML without a script, which any notebook shows, and untrusted ones too.

>>> sparkline(np.array([0.0, 1.0, 0.5]))[:4]
'<svg'
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt

from fastrec.report.picture import picture

Floats = npt.NDArray[np.float64]

MAX_POINTS = 60
"""Points of a small curve of a column, each the mean of a stretch."""

WIDTH, HEIGHT = 76, 18

CELL = 'style="text-align:right;white-space:nowrap;padding:2px 10px 2px 0;vertical-align:middle"'
LEFT = CELL.replace("right", "left", 1)


def sparkline(values: Floats, low: Floats | None = None, high: Floats | None = None) -> str:
    """A small curve, in the colour of the text around it, with a band where ``low`` and ``high`` are given."""
    shown = [curve for curve in (values, low, high) if curve is not None and np.isfinite(curve).any()]
    if not shown or len(values) < 2:
        return ""
    least = min(float(np.nanmin(curve[np.isfinite(curve)])) for curve in shown)
    most = max(float(np.nanmax(curve[np.isfinite(curve)])) for curve in shown)
    points = [_points(curve, least, most) for curve in (values, low, high) if curve is not None]
    band = ""
    if len(points) == 3:
        outline = points[1] + points[2][::-1]
        band = f'<path d="{_path(outline)}Z" fill="currentColor" fill-opacity=".18" stroke="none"/>'
    line = (
        f'<path d="{_path(points[0])}" fill="none" stroke="currentColor" stroke-width="1.3" stroke-linejoin="round"/>'
    )
    return (
        f'<svg width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'style="vertical-align:middle;color:#3b7dd8">{band}{line}</svg>'
    )


def _points(curve: Floats, least: float, most: float) -> list[tuple[float, float]]:
    x = np.linspace(2, WIDTH - 2, len(curve))
    room = (most - least) or 1.0
    y = HEIGHT - 2 - (curve - least) / room * (HEIGHT - 4) if most > least else np.full(len(curve), HEIGHT / 2)
    return [(float(a), float(b)) for a, b, own in zip(x, y, curve, strict=True) if np.isfinite(own)]


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def table_html(heading: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], notes: Sequence[str] = ()) -> str:
    """A heading, a table whose cells are texts, or curves with texts, and lines below it."""
    head = "".join(f"<th {LEFT if i == 0 else CELL}>{escape(name)}</th>" for i, name in enumerate(columns))
    body = "".join(f"<tr>{''.join(_cell(cell, i == 0) for i, cell in enumerate(row))}</tr>" for row in rows)
    below = "".join(f"<div>{escape(note)}</div>" for note in notes)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" if rows else ""
    above = f'<div style="margin:4px 0">{escape(heading)}</div>'
    return f'<div style="font-variant-numeric:tabular-nums">{above}{table}{below}</div>'


def _cell(cell: Any, is_first: bool) -> str:
    if isinstance(cell, str):
        return f"<td {LEFT if is_first else CELL}>{escape(cell)}</td>"
    if len(cell) == 2:
        curve, text = cell
        return f"<td {CELL}>{sparkline(curve)}{_figure(text)}</td>"
    curve, low, high, text = cell
    return f"<td {CELL}>{sparkline(curve, low, high)}{_figure(text)}</td>"


def _figure(text: str) -> str:
    """A number beside a curve, as wide as most, so that the curves of a column stand below each other."""
    return f'<span style="display:inline-block;min-width:5.5em">{escape(text)}</span>'


def columns_html(heading: str, columns: Mapping[str, npt.NDArray[Any]]) -> str:
    """One row for each column of steps, with a curve of its means over environments and time."""
    rows = []
    for name, column in columns.items():
        data = np.ma.filled(column.astype(np.float64), np.nan).reshape(len(column), -1)
        shape = "x".join(map(str, column.shape[1:])) or "-"
        rows.append((name, str(column.dtype), shape, (_means(data), _last(data))))
    return table_html(heading, ("column", "dtype", "shape", "mean over time, last"), rows)


def _means(data: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The means of stretches of rows."""
    pieces = np.array_split(data, min(len(data), MAX_POINTS)) if len(data) else []
    return np.array([float(np.nanmean(piece)) if np.isfinite(piece).any() else np.nan for piece in pieces])


def _last(data: npt.NDArray[Any]) -> str:
    means = _means(data)
    return f"{means[-1]:.4g}" if len(means) and np.isfinite(means[-1]) else "-"


def values_html(heading: str, values: npt.NDArray[Any] | None, facts: Sequence[tuple[str, str]] = ()) -> str:
    """What is known of a value, and a picture of it: rows below each other, the last axis across."""
    told = "".join(
        f'<tr><td style="text-align:left;padding:0 14px 0 0">{escape(name)}</td>'
        f'<td style="text-align:left">{escape(text)}</td></tr>'
        for name, text in facts
    )
    table = f"<table><tbody>{told}</tbody></table>" if facts else ""
    image = ""
    if values is not None and values.size:
        image = picture(values.reshape(-1, values.shape[-1]) if values.ndim else values.reshape(1, 1))
    return f"<div>{escape(heading)}{table}{image}</div>"


def curves_html(heading: str, curves: Mapping[str, npt.NDArray[Any]]) -> str:
    """Curves below a heading, with the last number of each."""
    rows = [
        (name, (_means(curve.reshape(len(curve), -1)), _last(curve.reshape(len(curve), -1))))
        for name, curve in curves.items()
    ]
    return table_html(heading, ("column", "over its steps, last"), rows)
