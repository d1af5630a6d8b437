"""Stages for what a spec makes of each value: the value, its transform, or both."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from torch import Tensor

from fastrec._blocks import Layout, RowMaker
from fastrec._copying import parts_of
from fastrec.events.capture import CaptureSpec
from fastrec.recording._source import Part
from fastrec.sinks._hdf5_layout import DataInfo
from fastrec.sinks._hdf5_ledger import FileLedger
from fastrec.sinks._hdf5_staging import Pool, Stage


class StagedParts:
    """Stages what a spec makes of each value; also a column itself, for transforms."""

    def __init__(self, ledger: FileLedger, pool: Pool, site: int, number: int, spec: CaptureSpec) -> None:
        self._ledger = ledger
        self._pool = pool
        self._site = site
        self._number = number
        self._spec = spec
        self._lock = threading.Lock()
        self._stages: dict[tuple[tuple[Part, Layout], ...], Stage] = {}

    def append(self, value: Tensor) -> int:
        """Keep what the spec makes of a value; its row."""
        parts = parts_of(value, self._spec)
        stage = self.stage({part: Layout.of(tensor) for part, tensor in parts.items()})
        return stage.put(list(parts.values()))

    def discard(self, row: int) -> None:
        """Forget a row."""
        self._pool.discarded.append(row)

    def stage(self, layouts: Mapping[Part, Layout]) -> Stage:
        """Where parts of these layouts go."""
        key = tuple(layouts.items())
        stage = self._stages.get(key)
        if stage is None:
            with self._pool.exclusively(self._lock):
                stage = self._stages.get(key)
                if stage is None:
                    stage = self._stages[key] = self._made(layouts)
        return stage

    def _made(self, layouts: Mapping[Part, Layout]) -> Stage:
        on_host = self._spec.with_changes({"device": "cpu"})
        makers = [RowMaker(layout, on_host) for layout in layouts.values()]
        infos = [
            DataInfo(
                name=f"data/{self._ledger.site_name(self._site)}",
                part=part,
                shape=maker.shape,
                dtype=str(maker.dtype).removeprefix("torch."),
                site=self._site,
                spec=self._number,
            )
            for part, maker in zip(layouts, makers, strict=True)
        ]
        return Stage(self._pool, list(layouts), makers, self._ledger.register(infos))
