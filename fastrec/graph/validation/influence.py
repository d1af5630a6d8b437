"""Whether a parent's value makes a difference to what a call returns, as far as that can be decided.

    influence = InfluenceCheck(replayer).of(call, parent, replayed)
    influence.kind                          # "shown", "exempted" or "unchecked"

A result that does not change says little: a factor of zero hides the other one, and NaN, a clamp's bound or a mask hide
even more. A list of such cases would never be complete. So what hides an influence is taken away:

1. other values of the parent, with the other arguments as they were: if the result changes, the influence is *shown*;
2. other values of all arguments, of which two sets differ in the parent alone: if these results differ, the function
   reads the parent, and the saved values of the other arguments *hide* it;
3. torch's own derivative with respect to the parent: if there is one, though it is zero, the function reads it;
4. two facts about functions and calls: those that read only the *form* of a tensor, and a call that *overwrites* it.

What none of them decides is *unchecked*, with the reason. Nothing here calls an edge wrong: for that it would take a
result that the function can't have, and this is what running it again on saved values looks for.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Any, Literal

import msgspec
import torch
from torch import Tensor

from fastrec.graph.raw import (
    REFERENCES,
    CapturedCall,
    Reference,
    flat,
    mapped,
)
from fastrec.graph.validation.comparison import differs
from fastrec.graph.validation.perturbation import (
    Allowed,
    allowed_values,
    generic_value,
    index_limit,
    is_pointwise,
    replacements,
)
from fastrec.graph.validation.replay import REFUSALS, CallArguments, CannotReplay, Replayed, Replayer, source_of

_FORM_ONLY = frozenset(
    "zeroslike oneslike emptylike fulllike randlike randnlike randintlike newzeros newones newfull newempty newtensor "
    "newemptystrided new resizeas".split()
)
"""Functions that read only shape, dtype and device of what they are given."""

_FORM_OF_ANOTHER = frozenset("expandas viewas reshapeas typeas to".split())
"""Functions that read only the form of all arguments but the first."""

_TRIALS = 8
"""How many sets of values of all arguments are tried."""


class Influence(msgspec.Struct, frozen=True):
    """Whether a parent makes a difference; for what is not shown, by which rule and why."""

    kind: Literal["shown", "exempted", "unchecked"]
    rule: str = ""
    why: str = ""


_SHOWN = Influence("shown")


class InfluenceCheck:
    """Finds out which parents make a difference to which calls."""

    def __init__(self, replayer: Replayer) -> None:
        self._replayer = replayer
        self._generator = torch.Generator().manual_seed(0)

    def of(self, call: CapturedCall, parent: int, replayed: Replayed) -> Influence:
        """Whether the value of a parent makes a difference to a call, which ``replayed`` is a run of."""
        arguments = _Arguments(call, self._replayer)
        value = arguments.values[parent]
        results = replayed.tensors
        if value.numel() == 0 or all(result.numel() == 0 for result in results.values()):
            return Influence("exempted", "nothing to change", "the value, or the result, has no elements")
        tried = False
        for other in replacements(value, arguments.allowed(parent), self._generator, arguments.limit):
            tried = True
            if self._changes(call, {parent: other}, results):
                return _SHOWN
        has_derivative = self._has_derivative(call, parent, value)
        allowed = arguments.allowed(parent, has_derivative=has_derivative)
        if allowed is not arguments.allowed(parent):
            tried = True
            if any(
                self._changes(call, {parent: other}, results)
                for other in replacements(value, allowed, self._generator, arguments.limit)
            ):
                return _SHOWN
        if tried and self._is_hidden(call, parent, arguments, allowed):
            why = "it makes a difference with other values of the other arguments than they have here"
            return Influence("exempted", "hidden", why)
        return self._not_shown(call, parent, arguments, has_derivative=has_derivative, tried=tried)

    def _not_shown(
        self, call: CapturedCall, parent: int, arguments: _Arguments, *, has_derivative: bool, tried: bool
    ) -> Influence:
        is_first = parent in arguments.first
        if call.layer_type in _FORM_ONLY or (call.layer_type in _FORM_OF_ANOTHER and not is_first):
            return Influence(
                "exempted", "form only", "the function reads only shape, dtype and device of this argument"
            )
        if arguments.is_written(parent):
            return Influence("exempted", "overwritten", "the call writes to this argument, whatever was in it before")
        if has_derivative:
            why = "the derivative with respect to it is zero here, and no other value made a difference"
            return Influence("exempted", "flat", why)
        if tried:
            return Influence("unchecked", why="no other value that was tried makes a difference to the result")
        why = f"no other value is known to be allowed: {call.func_name or call.layer_type} may use it as a position, "
        return Influence("unchecked", why=f"{why}a length or a count, which are not always checked")

    def _run(
        self, call: CapturedCall, values: Mapping[Hashable, Tensor], templates: CallArguments | None = None
    ) -> Mapping[Hashable, Tensor] | None:
        """What a call makes of other values; None if it refuses them."""
        try:
            return self._replayer.run(call, values, arguments_of=templates).tensors
        except REFUSALS:
            return None

    def _changes(
        self, call: CapturedCall, values: Mapping[Hashable, Tensor], results: Mapping[Hashable, Tensor]
    ) -> bool:
        """Whether a call gives other results; one that refuses a value has read it."""
        changed = self._run(call, values)
        return changed is None or _differ(results, changed)

    def _is_hidden(self, call: CapturedCall, parent: int, arguments: _Arguments, allowed: Allowed) -> bool:
        """Whether other values of all arguments show a difference that the saved ones hide."""
        generator = self._generator
        for _ in range(_TRIALS):
            others = {
                source: generic_value(value, self._allowed_for(call, source, arguments), generator, arguments.limit)
                for source, value in arguments.values.items()
                if source != parent
            }
            templates = _with_other_numbers(call, generator) if is_pointwise(call.func) else None
            value = arguments.values[parent]
            pair = [{**others, parent: generic_value(value, allowed, generator, arguments.limit)} for _ in range(2)]
            first, second = (self._run(call, values, templates) for values in pair)
            if first is not None and second is not None and _differ(first, second):
                return True
        return False

    def _allowed_for(self, call: CapturedCall, source: Hashable, arguments: _Arguments) -> Allowed:
        allowed = arguments.allowed(source)
        if allowed is Allowed.ANY or arguments.values[source].dtype == torch.bool:
            return allowed
        has_derivative = self._has_derivative(call, source, arguments.values[source])
        return arguments.allowed(source, has_derivative=has_derivative)

    def _has_derivative(self, call: CapturedCall, source: Hashable, value: Tensor) -> bool:
        """Whether torch has a derivative of the call with respect to one argument, zero included."""
        if not (value.is_floating_point() or value.is_complex()):
            return False
        with torch.inference_mode(False):
            leaf = value.clone().requires_grad_()
            try:
                replayed = self._replayer.run(call, {source: leaf}, gradients=True)
                outputs = [v for v in replayed.values.values() if v.requires_grad]
                if not outputs:
                    return False
                with torch.enable_grad():
                    sums = [output.sum().abs() if output.is_complex() else output.sum() for output in outputs]
                    (gradient,) = torch.autograd.grad(sums, leaf, allow_unused=True)
            except (CannotReplay, *REFUSALS):
                return False
        return gradient is not None


class _Arguments:
    """The tensor arguments of a call, by source."""

    def __init__(self, call: CapturedCall, replayer: Replayer) -> None:
        self._call = call
        references = [leaf for leaf in flat((call.args, dict(call.kwargs))) if isinstance(leaf, REFERENCES)]
        self.values: dict[Hashable, Tensor] = {source_of(r): replayer.value_of(r) for r in references}
        names = () if call.args else ("input", "self", "tensors")
        first = call.args[:1] or tuple(call.kwargs[name] for name in names if name in call.kwargs)
        others = (call.args[1:], {name: value for name, value in call.kwargs.items() if name not in names})
        self.first = set(map(source_of, _references(first))) - set(map(source_of, _references(others)))
        table = (*call.args[1:2], call.kwargs.get("weight")) if call.layer_type == "embedding" else first
        looked_up = next(_references(table), None)
        self.limit = index_limit(call, None if looked_up is None else self.values[source_of(looked_up)])

    def allowed(self, source: Hashable, *, has_derivative: bool = False) -> Allowed:
        """What may be put in an argument's place."""
        value = self.values[source]
        return allowed_values(self._call, value, is_first=source in self.first, has_derivative=has_derivative)

    def is_written(self, source: Hashable) -> bool:
        """Whether an argument is the one that the call writes to."""
        call = self._call
        out = call.kwargs.get("out")
        return call.inplace and (
            source in self.first if out is None else source in {source_of(r) for r in _references(out)}
        )


def _references(template: Any) -> Iterator[Reference]:
    return (leaf for leaf in flat(template) if isinstance(leaf, REFERENCES))


def _differ(first: Mapping[Hashable, Tensor], second: Mapping[Hashable, Tensor]) -> bool:
    return any(key not in second or differs(value, second[key]) for key, value in first.items())


def _with_other_numbers(call: CapturedCall, generator: torch.Generator) -> CallArguments:
    """The templates of a call with other numbers in place of its plain ones: ``x * 0`` hides x too."""

    def other(leaf: Any) -> Any:
        if type(leaf) not in (int, float):
            return leaf
        number = float(torch.rand((), generator=generator)) * 4
        return int(number) + 1 if type(leaf) is int else number

    return tuple(mapped(item, other) for item in call.args), {k: mapped(v, other) for k, v in call.kwargs.items()}
