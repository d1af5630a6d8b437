"""What is asked where: the predicates of a session, settled as far as possible for each place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from fastrec._errors import OptionError
from fastrec.engines._protocol import PassFilter, PlannedTap
from fastrec.events.capture import CaptureSpec
from fastrec.events.context import LEAF_FIELDS, PASS_FIELDS, PATH_FIELDS, STRUCTURAL_FIELDS, RecordContext
from fastrec.events.position import Position
from fastrec.events.sites import Catalog, Kind, PassInfo, RecordMeta, Site
from fastrec.predicates import NEVER
from fastrec.predicates._answers import spec_of
from fastrec.predicates._base import Constant, Opaque, PredicateBase, settled
from fastrec.predicates._modules import Inside, Module, ModuleInput, ModuleType
from fastrec.predicates._normalise import normalise
from fastrec.predicates._passes import Entry, Every, First, GradEnabled, Phase, any_of, pass_filter
from fastrec.predicates._protocol import Context, Predicate
from fastrec.session.failures import Failing
from fastrec.session.options import RecorderOptions
from fastrec.session.taps import NO_COMPILED_GRADIENTS, AskTap, KeepTap, PassRun, ResidualPredicate, TapState

OP_KINDS: tuple[Kind, ...] = ("op", "input", "buffer")

MODULE_KINDS: tuple[Kind, ...] = ("module_enter", "module_exit")

_SETTLED_BY_PATH = STRUCTURAL_FIELDS | PATH_FIELDS

_NO_TENSOR = ((), "float32", "cpu", False)

_NO_SITE = Site("", "op", "", "")

_NO_VARIANT = RecordMeta(0, "", 0, None, None, 1, (), (), "float32", "cpu", False, 0, None, None)

_NO_PASS = PassInfo(index=0, entry=0, entry_pass=0, phase=0, grad=False, started=0.0)

_NAMES_MODULES = (Module, ModuleType)

_OF_ANY_EVENT = (Inside, ModuleInput, Every, First, Phase, Entry, GradEnabled)


class Plan:
    """The normalised predicates of a session; opening one that can keep nothing is an OptionError."""

    def __init__(self, options: RecorderOptions) -> None:
        self.keep_op = normalise(options.keep_op, option="keep_op")
        self.keep_module = normalise(options.keep_module, option="keep_module")
        self.halt = normalise(options.halt, option="keep_op") if options.halt is not None else NEVER
        leaves = list(self.halt.leaves())
        self._halts_at_modules = any(isinstance(leaf, _NAMES_MODULES) for leaf in leaves) and all(
            isinstance(leaf, (*_NAMES_MODULES, *_OF_ANY_EVENT)) for leaf in leaves
        )
        self.sources = options.include_source_events
        self._questions: dict[Predicate, ResidualPredicate] = {}
        predicates = (self.keep_op, self.keep_module, self.halt)
        self._ahead = any_of([pass_filter(predicate) for predicate in predicates])
        about_passes = [leaf.reads & PASS_FIELDS for predicate in predicates for leaf in predicate.leaves()]
        self._counts_only = frozenset().union(*about_passes) <= {"entry_pass"}
        for needed in (self.keep_op.history, self.keep_module.history):
            if needed > options.history_size:
                raise OptionError(
                    f"a predicate looks back {needed} ops, and history_size={options.history_size}; "
                    f"give history_size={needed}"
                )
        # A session that only keeps module outputs by structure needs no function mode, the dearest part of watching.
        self.watches_ops = (
            options.track_parents
            or options.include_source_events
            or self.keep_op != NEVER
            or self.halt != NEVER
            or bool(self.keep_module.reads & PATH_FIELDS)
        )

    def check_can_keep(self) -> None:
        """Raise OptionError where no event could ever be kept."""
        kinds: list[Kind] = ["op", "input", "buffer"] if self.sources else ["op"]
        if self.keep_op == NEVER and self.keep_module == NEVER:
            if self.halt == NEVER:
                raise OptionError(
                    "there is no predicate, so nothing could be kept; give keep_op= (such as 'relu' or True) or "
                    "keep_module= (such as 'encoder.*' or True)"
                )
            return
        if self.keep_op != NEVER and not any(self.keep_op.may_keep_kind(kind) for kind in kinds):
            hint = "module events are selected by keep_module="
            if self.keep_op.may_keep_kind("input") or self.keep_op.may_keep_kind("buffer"):
                hint = "inputs and buffers become events with include_source_events=True"
            raise OptionError(f"keep_op={self.keep_op!r} can't keep any op event; {hint}")
        if self.keep_module != NEVER and not any(self.keep_module.may_keep_kind(k) for k in MODULE_KINDS):
            raise OptionError(
                f"keep_module={self.keep_module!r} can't keep any module event; ops, inputs and buffers are "
                "selected by keep_op="
            )

    def predicate(self, kind: Kind) -> PredicateBase:
        """Which predicate is asked about events of a kind."""
        return self.keep_module if kind in MODULE_KINDS else self.keep_op

    def halt_at(self, kind: Kind) -> PredicateBase:
        """The halt predicate that is asked about events of a kind; one that only speaks of modules means their ends."""
        return NEVER if kind in OP_KINDS and self._halts_at_modules else self.halt

    def check_compilable(self, default: CaptureSpec) -> None:
        """Raise OptionError for what the compiled engine can't do."""
        if default.save_gradient:
            raise OptionError(NO_COMPILED_GRADIENTS)
        for leaf in self._opaque():
            raise OptionError(
                f"{leaf!r} can't be looked into, and the compiled engine settles which values to keep when it "
                "compiles; wrap it in predicates.structural(fn) if it only looks at what is the same in every pass, or "
                "record the model that was compiled (model._orig_mod) with engine='eager'"
            )

    def _opaque(self) -> Iterator[PredicateBase]:
        """The parts of its predicates that can't be looked into."""
        for predicate in (self.keep_op, self.keep_module, self.halt):
            yield from (leaf for leaf in predicate.leaves() if isinstance(leaf, Opaque))

    def may_keep(self, site: Site) -> bool:
        """Whether something could be kept at a site, before its value has been seen."""
        for predicate in (self.predicate(site.kind), self.halt_at(site.kind)):
            if predicate != NEVER and (predicate.reads & LEAF_FIELDS or _narrow(predicate, site) != NEVER):
                return True
        return False

    def tap(self, state: TapState, place: Position, site: Site) -> PlannedTap[PassRun] | None:
        """The tap for a leaf of a place: none, one that keeps, or one that asks."""
        rest = self._settle(state, self.predicate(site.kind), place, site)
        halt = self._settle(state, self.halt_at(site.kind), place, site)
        if halt == NEVER:
            if rest == NEVER:
                return None
            if isinstance(rest, Constant):
                spec = spec_of(rest.decision, state.default)
                return None if spec is None else KeepTap(state, place, site, spec)
        return AskTap(state, place, site, self._question(rest), None if halt == NEVER else halt)

    def wanted(self, catalog: Catalog) -> PassFilter[PassRun] | None:
        """Whether something of a pass could be kept, by what is known of it before it runs; None: of each pass."""
        ask = self._ahead
        if isinstance(ask, bool):
            return None if ask else lambda run: False
        if self._counts_only:  # a pass knows its number itself, and a context takes longer than many a pass has
            return lambda run: ask(cast(Context, run.info))
        return lambda run: ask(RecordContext(catalog, _NO_SITE, _NO_VARIANT, run.info, 0.0, run.info.step))

    def _question(self, rest: Predicate) -> ResidualPredicate:
        if not rest.reads <= PASS_FIELDS:
            return ResidualPredicate(rest)
        return self._questions.setdefault(rest, ResidualPredicate(rest))

    def _settle(self, state: TapState, predicate: PredicateBase, place: Position, site: Site) -> Predicate:
        rest = _narrow(predicate, site)
        if isinstance(rest, PredicateBase) and rest.reads and rest.reads <= _SETTLED_BY_PATH:
            meta = state.meta_maker.of(place, site, _NO_TENSOR, 0, None)
            return settled(rest.decide(RecordContext(state.catalog, site, meta, _NO_PASS, 0.0, None)))
        return rest


def _narrow(predicate: PredicateBase, site: Site) -> PredicateBase | Failing:
    try:
        return predicate.narrow(site)
    # Narrowing may ask the user's code, which may raise anything.
    except Exception as error:
        return Failing(predicate, error)
