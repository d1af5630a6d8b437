"""Predicates of what an event is: its kind, its op, the ops before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, cast

from torch import nn

from fastrec._errors import PredicateError, did_you_mean
from fastrec.events.sites import KINDS, Kind
from fastrec.ops.facts import op_facts, op_types
from fastrec.predicates._answers import function_text
from fastrec.predicates._base import Matched
from fastrec.predicates._globs import Atom, GlobAtom, Globs, count_of, globs_of
from fastrec.predicates._protocol import Context


class Op(GlobAtom, frozen=True):
    """See ``op``."""

    name = "op"
    matched: ClassVar[Matched] = "op"
    reads = frozenset({"kind", "layer_type"})

    def decide(self, ctx: Context) -> bool:
        return ctx.kind == "op" and ctx.layer_type in self.globs


class KindOf(Atom, frozen=True):
    """See ``kind``."""

    kinds: tuple[Kind, ...]
    reads = frozenset({"kind"})

    def decide(self, ctx: Context) -> bool:
        return ctx.kind in self.kinds

    def __repr__(self) -> str:
        return f"kind({', '.join(map(repr, self.kinds))})"


class After(GlobAtom, frozen=True):
    """See ``after``."""

    within: int
    name = "after"
    matched: ClassVar[Matched] = "op"
    reads = frozenset({"recent_ops"})

    @property
    def looks_back(self) -> int:
        return self.within

    def decide(self, ctx: Context) -> bool:
        globs = self.globs
        return any(event.layer_type in globs for event in ctx.recent_ops[-self.within :])

    def __repr__(self) -> str:
        within = f", within={self.within}" if self.within != 1 else ""
        return f"after({self.globs!r}{within})"


def op(*layer_types: str | Callable[..., Any]) -> Op:
    """The results of ops of some types.

    >>> from fastrec.predicates import op
    >>> op("relu", "conv*")
    op('relu', 'conv*')
    >>> op("layer_norm") == op("LayerNorm") == op("layernorm")
    True

    Arguments:
        layer_types: functions of torch (``torch.tanh``, ``F.linear``), or globs of canonical op types
            (``ctx.layer_type``): the function's name in lower case without underscores, so ``add`` stands for
            ``+``, ``torch.add`` and ``add_``. Spellings with underscores or capitals mean the same.

    Raises PredicateError for anything else, and without any.
    """
    return Op(_layer_types("op", layer_types))


def kind(*kinds: Kind) -> KindOf:
    """Events of some kinds.

    >>> from fastrec.predicates import kind
    >>> kind("input", "buffer")
    kind('input', 'buffer')

    Arguments:
        kinds: any of "op", "module_enter", "module_exit", "input", "buffer".

    Raises PredicateError for any other value, and without any.
    """
    if not kinds:
        raise PredicateError(f"kind() needs at least one of {', '.join(map(repr, KINDS))}")
    for value in cast("tuple[object, ...]", kinds):
        if value not in KINDS:
            raise PredicateError(f"kind({value!r}) is not a kind of event; {did_you_mean(str(value), KINDS)}")
    return KindOf(tuple(dict.fromkeys(kinds)))


def after(*layer_types: str | Callable[..., Any], within: int = 1) -> After:
    """Events that come soon after an op of some types, in the same pass.

    >>> from fastrec.predicates import after, op
    >>> op("relu") & after("conv2d", within=2)
    op('relu') & after('conv2d', within=2)

    Arguments:
        layer_types: functions of torch or globs of canonical op types, as for ``op``.
        within: how many of the preceding ops to look at, from 1 (just the last one) to the recorder's
            ``history_size``.

    Raises PredicateError for anything else, and for a ``within`` below 1.
    """
    return After(_layer_types("after", layer_types), count_of("after", within, "ops to look back at"))


def _layer_types(name: str, values: tuple[str | Callable[..., Any], ...]) -> Globs:
    names = tuple(_op_name(name, value) if callable(value) else value for value in values)
    patterns = globs_of(name, names, "relu", Globs).patterns
    canonical = tuple(pattern.lower().replace("_", "") for pattern in patterns)
    if "" in canonical:
        raise PredicateError(f"{name}({patterns[canonical.index('')]!r}) names no op type; '*' matches all")
    return Globs(canonical)


def is_torch_function(value: object) -> bool:
    """Whether a value is one of torch's own functions, or of those behind Python's operators."""
    if isinstance(value, (type, nn.Module)) or not callable(value):
        return False
    module = getattr(value, "__module__", None) or getattr(getattr(value, "__objclass__", None), "__module__", "")
    return str(module).partition(".")[0] in ("torch", "_operator")


def _op_name(name: str, function: Callable[..., Any]) -> str:
    """The op type of a function of torch."""
    if not is_torch_function(function):
        raise PredicateError(
            f"{name}() got {function_text(function)}, which is no function of torch; give an op type such as "
            f"{name}('relu'), or join a function of the context with &"
        )
    facts = op_facts(function)
    if facts is None:
        raise PredicateError(
            f"{name}() got {function_text(function)}, which returns no new tensor and so is never an event; "
            f"give a function that does, such as {name}(torch.relu)"
        )
    return facts.layer_type


def is_op_type(text: str) -> bool:
    """Whether a text is the name of an op, with or without its underscores."""
    return text.lower().replace("_", "") in op_types()
