"""The predicates of a session, and what is left of them at each position.

    plan = Plan(options, roots)
    plan.check_can_keep()
    plan.may_keep(site)  # before the engine has seen its value
    keep, halt = plan.narrow(position, site, meta_maker)

A narrowed predicate is ``NEVER``, a constant that keeps every value, or a residual that has to be asked at each event.
The plan only narrows; ``make_tap`` in ``taps.py`` turns the answer into what an engine calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, cast

from torch import nn

from fastrec._errors import OptionError, PredicateError
from fastrec._torch.wrappers import unwrapped
from fastrec.engines._protocol import PassFilter
from fastrec.engines.eager.modules import ModuleRegistry
from fastrec.events.capture import CaptureSpec, check_device
from fastrec.events.context import LEAF_FIELDS, PASS_FIELDS, PATH_FIELDS, STRUCTURAL_FIELDS, RecordContext
from fastrec.events.position import NO_TENSOR, Position, RecordMetaMaker
from fastrec.events.sites import Catalog, Kind, PassInfo, RecordMeta, Site
from fastrec.predicates import NEVER
from fastrec.predicates._answers import spec_of
from fastrec.predicates._base import Constant, Opaque, PredicateBase, constant
from fastrec.predicates._modules import Inside, Module, ModuleInput, ModuleType
from fastrec.predicates._normalise import Option, normalise, resolve
from fastrec.predicates._passes import Entry, Every, First, GradEnabled, Phase, any_of, pass_filter
from fastrec.predicates._protocol import Context, Decision, Predicate
from fastrec.session.options import NO_COMPILED_GRADIENTS, RecorderOptions
from fastrec.session.taps import PassRun

OP_KINDS: tuple[Kind, ...] = ("op", "input", "buffer")

MODULE_KINDS: tuple[Kind, ...] = ("module_enter", "module_exit")

# Stand in the places of a context that a predicate does not read at this point.

_NO_SITE = Site("", "op", "", "")

_NO_META = RecordMeta(0, "", 0, None, None, 1, (), (), "float32", "cpu", False, 0, None, None)

_NO_PASS = PassInfo(index=0, entry=0, entry_pass=0, phase=0, grad=False, started=0.0)

_NAME_MODULES = (Module, ModuleType)

_FIT_ANY_EVENT = (Inside, ModuleInput, Every, First, Phase, Entry, GradEnabled)


class Plan:
    """The normalised predicates of a session."""

    def __init__(self, options: RecorderOptions, roots: Mapping[str, Any]) -> None:
        addresses = _Addresses(roots)
        self.keep_op = addresses.resolve(options.keep_op, "keep_op")
        self.keep_module = addresses.resolve(options.keep_module, "keep_module")
        self.halt = addresses.resolve(options.halt, "keep_op")
        check_device(options.capture)
        predicates = (self.keep_op, self.keep_module, self.halt)
        leaves = [leaf for predicate in predicates for leaf in predicate.leaves()]
        self._opaque_leaves = [leaf for leaf in leaves if isinstance(leaf, Opaque)]
        halt_leaves = list(self.halt.leaves())
        self._halts_at_modules = any(isinstance(leaf, _NAME_MODULES) for leaf in halt_leaves) and all(
            isinstance(leaf, (*_NAME_MODULES, *_FIT_ANY_EVENT)) for leaf in halt_leaves
        )
        self._observes_sources = options.include_source_events
        self._any_pass_filter = any_of([pass_filter(predicate) for predicate in predicates])
        pass_fields = frozenset().union(*(leaf.reads & PASS_FIELDS for leaf in leaves))
        self._filters_by_number_only = pass_fields <= {"entry_pass"}
        for history in (self.keep_op.history, self.keep_module.history):
            if history > options.history_size:
                raise OptionError(
                    f"a predicate looks back {history} ops, and history_size={options.history_size}; "
                    f"give history_size={history}"
                )
        # A session that only keeps module outputs by structure needs no function mode, the largest cost of watching.
        self.watches_ops = (
            options.track_parents
            or options.include_source_events
            or self.keep_op != NEVER
            or self.halt != NEVER
            or bool(self.keep_module.reads & PATH_FIELDS)
        )

    def check_can_keep(self) -> None:
        """Raise OptionError where no event could ever be kept."""
        kinds: list[Kind] = ["op", "input", "buffer"] if self._observes_sources else ["op"]
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
        if self.keep_module != NEVER and not any(self.keep_module.may_keep_kind(kind) for kind in MODULE_KINDS):
            raise OptionError(
                f"keep_module={self.keep_module!r} can't keep any module event; ops, inputs and buffers are "
                "selected by keep_op="
            )

    def asks_for_gradients(self, default: CaptureSpec) -> bool:
        """Whether the default capture or a predicate asks for gradients; what opaque ones answer shows later."""
        captures = [capture for predicate in (self.keep_op, self.keep_module) for capture in predicate.captures()]
        specs = [default, *(spec_of(capture, default) for capture in captures)]
        return any(spec is not None and (spec.keep_grad or spec.save_gradient) for spec in specs)

    def check_compilable(self, default: CaptureSpec) -> None:
        """Raise OptionError for what the compiled engine can't do."""
        if default.save_gradient:
            raise OptionError(NO_COMPILED_GRADIENTS)
        for leaf in self._opaque_leaves:
            raise OptionError(
                f"{leaf!r} can't be looked into, and the compiled engine settles which values to keep when it "
                "compiles; wrap it in predicates.structural(fn) if it only looks at what is the same in every pass, or "
                "record the model that was compiled (model._orig_mod) with engine='eager'"
            )

    def predicate(self, kind: Kind) -> PredicateBase:
        """The predicate that is asked about events of a kind."""
        return self.keep_module if kind in MODULE_KINDS else self.keep_op

    def halt_at(self, kind: Kind) -> PredicateBase:
        """The halt predicate for events of a kind; one that only names modules means their outputs, not their ops."""
        return NEVER if kind in OP_KINDS and self._halts_at_modules else self.halt

    def may_keep(self, site: Site) -> bool:
        """Whether something could be kept at a site, before its value has been seen."""
        for predicate in (self.predicate(site.kind), self.halt_at(site.kind)):
            # Which leaves a nested value has shows only when it is there.
            if predicate != NEVER and (predicate.reads & LEAF_FIELDS or _narrow(predicate, site) != NEVER):
                return True
        return False

    def narrow(self, position: Position, site: Site, meta_maker: RecordMetaMaker) -> tuple[Predicate, Predicate]:
        """What is left of the keep predicate and of the halt predicate for a leaf of the value at a position."""
        return (
            _narrow_at(self.predicate(site.kind), position, site, meta_maker),
            _narrow_at(self.halt_at(site.kind), position, site, meta_maker),
        )

    def pass_filter(self, catalog: Catalog) -> PassFilter[PassRun] | None:
        """Whether something of a pass could be kept, by what is known before it runs; None: always."""
        may_keep = self._any_pass_filter
        if isinstance(may_keep, bool):
            return None if may_keep else lambda run: False
        if self._filters_by_number_only:
            # A PassInfo has this one field itself, and making a context takes longer than many a pass has.
            return lambda run: may_keep(cast(Context, run.info))
        return lambda run: may_keep(RecordContext(catalog, _NO_SITE, _NO_META, run.info, 0.0, run.info.step))


class _Addresses:
    """The addresses of modules that stand in predicates, worked out when the first one is asked for."""

    def __init__(self, roots: Mapping[str, Any]) -> None:
        self._roots = roots
        self._registry: ModuleRegistry | None = None

    def resolve(self, value: object, option: Option) -> PredicateBase:
        """The value of an option as a predicate of addresses."""
        return resolve(normalise(value, option=option), partial(self._address_of, option))

    def _address_of(self, option: Option, module: nn.Module) -> str:
        if self._registry is None:
            self._registry = ModuleRegistry(self._roots)
        tracked = self._registry.by_id.get(id(module)) or self._registry.by_id.get(id(unwrapped(module)))
        if tracked is None:
            roots = ", ".join(type(root).__name__ for root in self._roots.values())
            raise PredicateError(
                f"{option} got a module ({type(module).__name__}) that is not in the recorded model ({roots}); give "
                "one of its own modules, such as model.get_submodule('encoder.0'), or an address or class"
            )
        return tracked.address


def _narrow_at(predicate: PredicateBase, position: Position, site: Site, meta_maker: RecordMetaMaker) -> Predicate:
    if isinstance(predicate, Constant):
        return predicate
    residual = _narrow(predicate, site)
    if isinstance(residual, PredicateBase) and residual.reads and residual.reads <= STRUCTURAL_FIELDS | PATH_FIELDS:
        # All that it reads is the same whenever a pass gets to this position, so it is asked now.
        meta = meta_maker.make(position, site, NO_TENSOR, 0, None)
        return constant(residual.decide(RecordContext(meta_maker.catalog, site, meta, _NO_PASS, 0.0, None)))
    return residual


def _narrow(predicate: PredicateBase, site: Site) -> PredicateBase | _FailedPredicate:
    try:
        return predicate.narrow(site)
    # Narrowing may ask the user's code, which may raise anything.
    except Exception as error:
        return _FailedPredicate(predicate, error)


class _FailedPredicate:
    """A predicate that raised while it was narrowed: it raises again at each event, where the error is handled."""

    reads = frozenset({"site"})  # so that nobody takes it for settled

    def __init__(self, predicate: Predicate, error: Exception) -> None:
        self._predicate = predicate
        self._error = error

    def narrow(self, site: Site) -> _FailedPredicate:
        """It stays as it is."""
        return self

    def decide(self, ctx: Context) -> Decision:
        """Raise what the predicate raised."""
        raise self._error

    def __repr__(self) -> str:
        return repr(self._predicate)
