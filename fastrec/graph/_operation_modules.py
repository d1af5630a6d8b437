"""Where in the modules an operation ran."""

from __future__ import annotations

from fastrec.graph._operation_base import Facts


class ModuleFacts(Facts):
    """Modules around an operation; a module pass is written ``address:pass``. The model itself is not counted."""

    __slots__ = ()

    @property
    def is_computed_inside_submodule(self) -> bool:
        """Whether it ran inside of a submodule."""
        return self.containing_module_origin is not None

    @property
    def containing_module_origin(self) -> str | None:
        """The innermost module pass that it ran in, None for the model itself."""
        nested = self.containing_module_origin_nested
        return nested[-1] if nested else None

    @property
    def containing_module_origin_nested(self) -> list[str]:
        """All module passes that it ran in, outermost first."""
        found = []
        call = self.raw.module
        while call is not None and call.address:
            found.append(call.label)
            call = call.parent
        return found[::-1]

    @property
    def modules_entered(self) -> list[str]:
        """The module passes that its value went into."""
        return [call.label for call in self._graph.module_entries.get(self.index, ())]

    @property
    def is_submodule_output(self) -> bool:
        """Whether its value left a submodule."""
        return self.index in self._graph.module_exits

    @property
    def modules_exited(self) -> list[str]:
        """The module passes that its value left, in order."""
        return [call.label for call in self._graph.module_exits.get(self.index, ())]

    @property
    def is_bottom_level_submodule_output(self) -> bool:
        """Whether its value left a submodule in which it was the only operation."""
        return self.bottom_level_module is not None

    @property
    def bottom_level_module(self) -> str | None:
        """The module pass that it left as the only operation in it."""
        call = self.raw.module
        alone = call is not None and call.address and call.ops == 1 and self.index in call.exited
        return call.label if alone and call is not None else None
