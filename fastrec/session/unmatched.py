"""What to say of names in predicates that matched nothing: what was near, and which option takes such a name.

    names = Names.of(engine, layer_types)
    for message in names.unmatched("keep_op", plan.keep_op):
        warnings.warn(message, FastrecWarning)

A recorder asks when it closes, and a dry run after its pass.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import msgspec

from fastrec._errors import did_you_mean
from fastrec.engines._protocol import Engine, RunT
from fastrec.events.sites import Frame
from fastrec.predicates._addresses import is_glob, nearest
from fastrec.predicates._base import Matched, Pattern, PredicateBase
from fastrec.predicates._events import is_op_type
from fastrec.predicates._normalise import Option

_DESCRIPTIONS: dict[Matched, str] = {
    "op": "op type that ran",
    "module": "module address",
    "module_type": "module class",
    "phase": "phase of a pass",
    "entry": "entry of a pass",
}


class Names(msgspec.Struct, frozen=True):
    """The names of what is in a model and of what ran.

    ``called`` are the addresses of the modules that were called. ``layer_types`` are the ops that ran; None where no
    pass was watched, because nothing could be kept of any. ``phases`` and ``entries`` are None for a dry run, which is
    one pass and says nothing of others.
    """

    addresses: Collection[str]
    module_types: Collection[str]
    called: Collection[str]
    layer_types: Collection[str] | None
    phases: Collection[str] | None = None
    entries: Collection[str] | None = None

    @classmethod
    def of(
        cls,
        engine: Engine[RunT],
        layer_types: Collection[str],
        phases: Collection[str] | None = None,
        entries: Collection[str] | None = None,
    ) -> Names:
        """What an engine knows when the passes have run."""
        frames, called = engine.frames(), engine.called()
        return cls(
            addresses={address for frame in frames for address in _addresses(frame)},
            module_types={frame.module_type for frame in frames},
            called=called,
            layer_types=layer_types if layer_types or called else None,
            phases=phases,
            entries=entries,
        )

    def unmatched(self, option: Option, predicate: PredicateBase) -> Iterator[str]:
        """A message for each name in a predicate that matched nothing."""
        for pattern in predicate.patterns(*_DESCRIPTIONS):
            message = self._message(option, pattern)
            if message is not None:
                yield f"{option}: {message}"

    def without_tensors(self, predicate: PredicateBase, modules: Mapping[str, str]) -> Iterator[str]:
        """A message for each name that selects modules, by address and type, which returned no tensor."""
        for matched, text, matches in predicate.patterns("module", "module_type"):
            selected = [path for path, name in modules.items() if matches(path if matched == "module" else name)]
            if selected:
                more = f" and {len(selected) - 1} more" if len(selected) > 1 else ""
                yield (
                    f"keep_module: {text!r} selects {selected[0]!r}{more}, which ran and returned no tensor, so "
                    "nothing of it could be kept"
                )

    def _message(self, option: Option, pattern: Pattern) -> str | None:
        matched, text, matches = pattern
        names = self._names(matched)
        if names is None:
            return None
        matching = sorted(filter(matches, names))
        if not matching:
            hint = self._other_option(option, matched, text) or (
                nearest(text, names) if matched in ("module", "entry") else did_you_mean(text, sorted(names))
            )
            return f"{text!r} matched no {_DESCRIPTIONS[matched]}; {hint}"
        if matched == "module" and self.layer_types is not None and not any(map(self.called.__contains__, matching)):
            inside = any(address.startswith(f"{matching[0]}.") for address in self.called)
            hint = f"; {matching[0] + '.*'!r} is what is in it" if inside else ""
            return f"{text!r} matched {matching[0]!r}, which was not called in any pass{hint}"
        return None

    def _names(self, matched: Matched) -> Collection[str] | None:
        names: dict[Matched, Collection[str] | None] = {
            "op": self.layer_types,
            "module": self.addresses,
            "module_type": self.module_types,
            "phase": self.phases,
            "entry": self.entries,
        }
        return names[matched]

    def _other_option(self, option: Option, matched: Matched, text: str) -> str | None:
        """How to write what was given in the wrong place; None where it was not."""
        if matched == "op" and text in {address.lower().replace("_", "") for address in self.addresses if address}:
            return (
                "it is the address of a module, whose output is kept by keep_module=, and the ops in it by "
                f"keep_op=module({text!r})"
            )
        if matched == "op" and "/" in text:
            address, _, layer_type = text.rpartition("/")
            return f"a site is selected by op({layer_type.partition('_')[0]!r}) & module({address!r})"
        if matched == "module_type" or is_glob(text):
            return None
        if matched == "module" and is_op_type(text):
            return f"it is the type of an op, which is kept by keep_op={text!r}"
        if matched == "module" and text in self.module_types:
            return f"it is the name of a class: module_type({text!r})"
        return None


def _addresses(frame: Frame) -> tuple[str, ...]:
    return (frame.module_address, *frame.aliases)
