"""Functions that look only at what is the same in every pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastrec._contracts import Context
from fastrec.events.context import STRUCTURAL_FIELDS
from fastrec.predicates._base import Leaf, PredicateBase, settled
from fastrec.predicates._callables import check_callable
from fastrec.predicates._decision import Answer, checked
from fastrec.predicates._printing import function_text
from fastrec.predicates._views import KindView, SiteView, StructuralView


class Structural(Leaf, frozen=True):
    """See ``structural``."""

    function: Callable[[Any], Any]
    reads = STRUCTURAL_FIELDS
    is_plain = False

    def decide(self, ctx: Context) -> Answer:
        return checked(self.function(StructuralView(ctx, self)), self, ctx, at="site")

    def _settle(self, view: SiteView | KindView) -> PredicateBase:
        return settled(self.decide(view)) if isinstance(view, SiteView) else self

    def __repr__(self) -> str:
        return f"structural({function_text(self.function)})"


def structural(function: Callable[[Any], Any]) -> Structural:
    """A function that is asked once per site, on your word that its answer hangs on nothing else.

    >>> from fastrec.predicates import every, structural
    >>> deep = structural(lambda ctx: len(ctx.module_stack) > 3)
    >>> deep & every(10)
    structural(function('...<lambda>', ...)) & every(10)

    Arguments:
        function: context -> True, False, None (not kept) or a CaptureSpec. It may read ``kind``, ``site``,
            ``layer_type``, ``func_name``, ``module_address``, ``module_type``, ``module_stack`` (addresses
            and types), ``output_index``, ``input_output_address`` and ``is_bottom_level_func``; reading
            another field raises PredicateError.

    Raises PredicateError for what can't be called with a context.
    """
    return Structural(check_callable(function, "structural()"))
