"""A recording as text and in a notebook."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from fastrec._recording_sites import SiteFacts, table_of, told_bytes

MOST_ROWS_SHOWN = 50


def summary_of(heading: str, sites: Mapping[str, SiteFacts]) -> str:
    """One line for the whole and one per site, in columns."""
    rows = table_of(sites)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    total = told_bytes(sum(facts.nbytes for facts in sites.values()))
    return "\n".join([f"{heading}, {total}", *(lines if sites else [])])


def html_of(heading: str, sites: Mapping[str, SiteFacts]) -> str:
    """The same as HTML, long tables cut."""
    head, *rows = table_of(sites)
    shown = rows[:MOST_ROWS_SHOWN]
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in shown)
    cut = f"<p>and {len(rows) - len(shown)} more sites</p>" if len(rows) > len(shown) else ""
    return (
        f"<details><summary>{escape(heading)}</summary><table><thead><tr>"
        f"{''.join(f'<th>{escape(cell)}</th>' for cell in head)}</tr></thead>"
        f"<tbody>{body}</tbody></table>{cut}</details>"
    )
