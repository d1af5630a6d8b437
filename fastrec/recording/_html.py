"""What a recording looks like in a notebook: a table of its sites with small curves, without a script.

Showing a recording must not read all of it: of each site some records are looked at, spread over the run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastrec.recording._arrays import real_array
from fastrec.recording._records import SiteFacts, format_bytes, format_shapes
from fastrec.recording._source import Array
from fastrec.recording._view import View
from fastrec.report.html import table_html

MAX_SITES = 50

MAX_READ_SITES = 25
"""Sites of which values are read."""

SAMPLES = 24
"""Records of a site that are read."""

MAX_SAMPLE_BYTES = 256 * 1024
"""Records larger than this are not read."""


def recording_html(heading: str, view: View, sites: Mapping[str, SiteFacts]) -> str:
    """One row for each site, with a curve of its values over the run."""
    rows: list[Sequence[Any]] = []
    shown = list(sites.values())[:MAX_SITES]
    metas_of: dict[str, list[int]] = {}
    for meta in view.metas:
        metas_of.setdefault(view.site(meta).name, []).append(meta)
    for number, facts in enumerate(shown):
        band = _band(view.of_metas(metas_of[facts.name]), facts) if number < MAX_READ_SITES else None
        rows.append(
            (
                facts.name,
                facts.kind,
                f"{facts.count:,}",
                f"{facts.passes:,}",
                format_shapes(facts.shapes),
                ", ".join(facts.dtypes),
                format_bytes(facts.nbytes),
                "" if band is None else (*band, f"{band[0][-1]:.3g}"),
            )
        )
    notes = [f"and {len(sites) - len(shown):,} more sites"] if len(sites) > len(shown) else []
    if any(row[-1] != "" for row in rows):
        notes.append(f"values: the median and 5 to 95 % of up to {SAMPLES} records; describe() looks at all of them")
    columns = ("site", "kind", "records", "passes", "shape", "dtype", "bytes", "values")
    return table_html(heading, columns, rows, notes)


def _band(view: View, facts: SiteFacts) -> tuple[Array, Array, Array] | None:
    """The median and the 5 and 95 % of some records, those spread over the run; None where there is nothing to show."""
    kept = np.flatnonzero(view.rows >= 0)
    if len(kept) < 2 or facts.nbytes // max(1, facts.count) > MAX_SAMPLE_BYTES:
        return None
    some = kept[np.unique(np.linspace(0, len(kept) - 1, SAMPLES).astype(np.int64))]
    found = []
    for at in some.tolist():
        meta = int(view.meta_numbers[at])
        part = "activation" if view.spec(meta).save_raw else "transformed_activation"
        value = view.source.value(meta, int(view.rows[at]), part)
        numbers = np.empty(0) if value is None else real_array(value).reshape(-1)
        numbers = numbers[np.isfinite(numbers)]
        found.append(np.quantile(numbers, [0.5, 0.05, 0.95]) if len(numbers) else np.full(3, np.nan))
    table = np.array(found)
    return (table[:, 0], table[:, 1], table[:, 2]) if np.isfinite(table[-1]).all() else None
