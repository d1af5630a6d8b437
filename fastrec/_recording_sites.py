"""What was kept at each site, counted."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np

from fastrec._recording_view import View
from fastrec.events.capture import kept_dtype
from fastrec.events.context import torch_dtype


class SiteFacts(msgspec.Struct, frozen=True):
    """What a recording holds of one site: how many records in how many passes, of which shapes and dtypes."""

    name: str
    kind: str
    layer_type: str
    module_type: str
    count: int
    passes: int
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    nbytes: int


def sites_of(view: View) -> dict[str, SiteFacts]:
    """The facts of every site that occurs, by name, in the order in which they first occurred."""
    kinds, first, inverse = np.unique(view.variants, return_index=True, return_inverse=True)
    counts = np.bincount(inverse, minlength=len(kinds))
    nbytes = np.bincount(inverse, weights=view.source.nbytes(view.variants, view.rows), minlength=len(kinds))
    by_name: dict[str, list[int]] = {}
    for i in np.argsort(first).tolist():
        by_name.setdefault(view.site(int(kinds[i])).name, []).append(i)
    found = {}
    for name, members in by_name.items():
        numbers = [int(kinds[i]) for i in members]
        site = view.site(numbers[0])
        fired = np.isin(inverse, members)
        found[name] = SiteFacts(
            name=name,
            kind=site.kind,
            layer_type=site.layer_type,
            module_type=site.module_type,
            count=int(counts[members].sum()),
            passes=len(np.unique(view.pass_at[fired])),
            shapes=tuple(dict.fromkeys(view.variant(number).shape for number in numbers)),
            dtypes=tuple(dict.fromkeys(_dtype(view, number) for number in numbers)),
            nbytes=int(nbytes[members].sum()),
        )
    return found


def told_shapes(facts: SiteFacts) -> str:
    """The shapes in a few words."""
    shown = ", ".join("x".join(map(str, shape)) or "scalar" for shape in facts.shapes[:3])
    return shown + (f" and {len(facts.shapes) - 3} more" if len(facts.shapes) > 3 else "")


def told_bytes(nbytes: int) -> str:
    """A number of bytes in a few words.

    >>> told_bytes(4096), told_bytes(3 * 2**20)
    ('4.0 KiB', '3.0 MiB')
    """
    size, units = float(nbytes), iter(("KiB", "MiB", "GiB", "TiB"))
    if size < 1024:
        return f"{nbytes} B"
    unit = ""
    while size >= 1024 and (larger := next(units, None)):
        size, unit = size / 1024, larger
    return f"{size:.1f} {unit}"


def table_of(sites: Mapping[str, SiteFacts]) -> list[tuple[str, ...]]:
    """Heading and rows of a table of sites."""
    rows: list[tuple[str, ...]] = [("site", "kind", "records", "passes", "shape", "dtype", "bytes")]
    for facts in sites.values():
        rows.append(
            (
                facts.name,
                facts.kind,
                str(facts.count),
                str(facts.passes),
                told_shapes(facts),
                ", ".join(facts.dtypes),
                told_bytes(facts.nbytes),
            )
        )
    return rows


def _dtype(view: View, variant: int) -> str:
    dtype = torch_dtype(view.variant(variant).dtype)
    return str(kept_dtype(view.spec(variant), dtype)).removeprefix("torch.")
