"""Which records have which part."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastrec.events.sites import Catalog
from fastrec.recording._source import Part


def having(catalog: Catalog, records: npt.NDArray[Any], part: Part) -> npt.NDArray[np.int64]:
    """The positions of the records that have an activation, or a transformed one."""
    kinds = np.unique(records["variant"]).tolist()
    specs = {kind: catalog.specs[catalog.variants[kind].spec] for kind in kinds}
    kept = [k for k, spec in specs.items() if (spec.save_raw if part == "activation" else spec.transform is not None)]
    return np.flatnonzero((records["row"] >= 0) & np.isin(records["variant"], kept))
