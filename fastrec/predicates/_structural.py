"""Functions that only look at the structure, so that they are asked once per site.

The user's word for it is checked: the function gets a view of the context that refuses every field that could differ
from one pass to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from fastrec._errors import ContextFieldError, PredicateError, did_you_mean
from fastrec.events.context import FIELDS, STRUCTURAL_FIELDS
from fastrec.events.sites import Frame
from fastrec.predicates._answers import Answer, check_callable, checked, function_text
from fastrec.predicates._base import Leaf, PredicateBase, constant
from fastrec.predicates._partial_context import KindView, SiteView
from fastrec.predicates._protocol import Context


def structural(function: Callable[[Any], Any]) -> Structural:
    """A function that is asked once per site, on your word that its answer depends on the structure alone.

    >>> from fastrec.predicates import every, structural
    >>> deep = structural(lambda ctx: len(ctx.module_stack) > 3)
    >>> deep & every(10)
    structural(function('...<lambda>', ...)) & every(10)

    Arguments:
        function: context -> True, False, None (not kept) or a CaptureSpec. It may read ``kind``, ``site``,
            ``layer_type``, ``func_name``, ``module_address``, ``module_type``, ``module_stack`` (addresses
            and types), ``output_index``, ``input_output_address`` and ``is_bottom_level_func``. Reading any
            other field raises PredicateError.

    Raises PredicateError for what can't be called with a context.
    """
    return Structural(check_callable(function, "structural()"))


class Structural(Leaf, frozen=True):
    """See ``structural``."""

    function: Callable[[Any], Any]
    reads = STRUCTURAL_FIELDS
    is_plain = False

    def decide(self, ctx: Context) -> Answer:
        return checked(self.function(_StructuralView(ctx, self)), self, ctx, once_per_site=True)

    def _settle(self, view: SiteView | KindView) -> PredicateBase:
        return constant(self.decide(view)) if isinstance(view, SiteView) else self

    def __repr__(self) -> str:
        return f"structural({function_text(self.function)})"


class _StructuralView:
    """A context that shows its structural fields and refuses all others."""

    __slots__ = ("_ctx", "_predicate")

    def __init__(self, ctx: Context, predicate: Structural) -> None:
        self._ctx = ctx
        self._predicate = predicate

    @property
    def module_stack(self) -> tuple[_StructuralFrame, ...]:
        return tuple(_StructuralFrame(frame, self._predicate) for frame in self._ctx.module_stack)

    def __getattr__(self, name: str) -> Any:
        if name in STRUCTURAL_FIELDS:
            return getattr(self._ctx, name)
        if name in FIELDS:
            raise _not_structural(self._predicate, name, sorted(STRUCTURAL_FIELDS))
        raise ContextFieldError(f"a context has no field {name!r}; {did_you_mean(name, FIELDS)}")


class _StructuralFrame:
    """A module on the stack of a structural view."""

    __slots__ = ("_predicate", "aliases", "module_address", "module_type")

    def __init__(self, frame: Frame, predicate: Structural) -> None:
        self._predicate = predicate
        self.module_address = frame.module_address
        self.module_type = frame.module_type
        self.aliases = frame.aliases

    def __getattr__(self, name: str) -> Any:
        fields = Frame.__struct_fields__
        if name == "pass_index":
            raise _not_structural(self._predicate, "module_stack[...].pass_index", fields)
        raise ContextFieldError(f"a module on the stack has no {name!r}; {did_you_mean(name, fields)}")


def _not_structural(predicate: Structural, name: str, allowed: Iterable[str]) -> PredicateError:
    return PredicateError(
        f"{predicate!r} read {name}, which is not the same in every pass; a structural function may read "
        f"{', '.join(allowed)}. Give the function itself, without structural(), to have it asked "
        "at every event"
    )
