"""What may be kept inside of modules that run as one event."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastrec._contracts import Listener
from fastrec.engines._fused import layer_types_in
from fastrec.engines._modules import Known, ModuleTable, unwrapped
from fastrec.events.sites import Frame, Site


class Inside:
    """Tells of a module whether something could be kept inside of it, without running it."""

    def __init__(self, table: ModuleTable, listener: Listener) -> None:
        self._table = table
        self._listener = listener
        self._kept: dict[Any, bool] = {}

    def is_kept(self, known: Known, frames: tuple[Frame, ...]) -> bool:
        """Whether something could be kept inside of a module that is called with these modules around it."""
        key = (known, frames)
        if key not in self._kept:
            self._kept[key] = any(map(self._listener.may_keep, self._sites(known, frames)))
        return self._kept[key]

    def _sites(self, known: Known, frames: tuple[Frame, ...]) -> Iterator[Site]:
        """All sites that there may be inside of a module, more rather than fewer."""
        below = list(self._table.below(known, frames))
        for k, stack in below:
            yield Site(k.name, "module_exit", k.layer_type, k.frame.module_type, stack)
            yield Site(k.input_prefix, "module_enter", k.layer_type, k.frame.module_type, stack)
        for kind in layer_types_in([unwrapped(known.module), *(k.module for k, _ in below)]):
            for k, stack in ((known, frames), *below):
                yield Site(f"{k.address}/{kind}", "op", kind, kind, stack)
