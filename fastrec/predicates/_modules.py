"""Predicates of where an event happens: in which module, of which class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol

from torch import nn

from fastrec._errors import PredicateError
from fastrec.predicates._addresses import AddressGlobs
from fastrec.predicates._base import Leaf, Matched, PredicateBase
from fastrec.predicates._globs import GlobAtom, Globs, globs_of
from fastrec.predicates._protocol import Context


class Module(GlobAtom, frozen=True):
    """See ``module``."""

    name = "module"
    matched: ClassVar[Matched] = "module"
    reads = frozenset({"kind", "module_stack"})

    def decide(self, ctx: Context) -> bool:
        if ctx.kind == "module_enter":
            return False
        # Not by ctx.module_address: an op outside any module has that of a root, "", but no stack.
        return _any_matches(self.globs, ctx.module_stack[-1:])


class ModuleInput(GlobAtom, frozen=True):
    """See ``module_input``."""

    name = "module_input"
    matched: ClassVar[Matched] = "module"
    reads = frozenset({"kind", "module_stack"})

    def decide(self, ctx: Context) -> bool:
        return ctx.kind == "module_enter" and _any_matches(self.globs, ctx.module_stack[-1:])


class ModuleType(GlobAtom, frozen=True):
    """See ``module_type``."""

    name = "module_type"
    matched: ClassVar[Matched] = "module_type"
    reads = frozenset({"kind", "module_type"})

    def decide(self, ctx: Context) -> bool:
        if ctx.kind == "module_enter":
            return False
        class_name = ctx.module_type
        return class_name != "" and class_name in self.globs


class Inside(GlobAtom, frozen=True):
    """See ``inside``."""

    name = "inside"
    matched: ClassVar[Matched] = "module"
    reads = frozenset({"kind", "module_stack"})

    def decide(self, ctx: Context) -> bool:
        if ctx.kind == "module_enter":
            return False
        frames = ctx.module_stack
        enclosing = frames[:-1] if ctx.kind == "module_exit" else frames
        return _any_matches(self.globs, enclosing)


class OfModules(Leaf, frozen=True):
    """``module``, ``module_input`` or ``inside`` of modules themselves, until a recorder puts their addresses here."""

    make: Callable[..., PredicateBase]
    modules: tuple[str | nn.Module, ...]
    is_plain = True
    reads = frozenset({"kind", "module_stack"})

    def decide(self, ctx: Context) -> bool:
        raise PredicateError(
            f"{self!r} holds modules, whose addresses are known in a recorder of their model alone; to ask it about a "
            f"context, give addresses: {self.make.__name__}('encoder.0')"
        )

    def _settle(self, view: object) -> PredicateBase:
        return self

    def with_addresses(self, address_of: Callable[[nn.Module], str]) -> PredicateBase:
        """The same predicate of addresses."""
        return self.make(*(name if isinstance(name, str) else address_of(name) for name in self.modules))

    def __repr__(self) -> str:
        # A module prints with all that is in it, over many lines.
        names = ", ".join(repr(part) if isinstance(part, str) else f"<{type(part).__name__}>" for part in self.modules)
        return f"{self.make.__name__}({names})"


class _OfAddresses(Protocol):
    def __call__(self, globs: AddressGlobs) -> PredicateBase: ...


def _of_modules(
    make: Callable[..., PredicateBase], predicate: _OfAddresses, addresses: tuple[str | nn.Module, ...]
) -> PredicateBase:
    if any(isinstance(address, nn.Module) for address in addresses):
        names = tuple(address for address in addresses if not isinstance(address, nn.Module))
        if names:
            globs_of(make.__name__, names, "encoder.*", AddressGlobs)  # raises for what is neither
        return OfModules(make, addresses)
    return predicate(globs_of(make.__name__, addresses, "encoder.*", AddressGlobs))


def module(*addresses: str | nn.Module) -> PredicateBase:
    """The outputs of some modules; in ``keep_op``, what happens directly in them.

    >>> from fastrec.predicates import module
    >>> module("encoder.*", "head")
    module('encoder.*', 'head')

    Arguments:
        addresses: modules of the model, or globs of their addresses as ``model.named_modules()`` shows them. ``*``
            stays within one level and ``**`` crosses levels: ``"h.*"`` are the blocks, and ``"h.**"`` all that is in
            them. ``""`` is a root that has no name. With several roots the root's name stands first:
            ``"actor.0"``. A module that is reachable under several addresses is selected by each of them.

    Raises PredicateError for anything else, and without any; a recorder raises it for a module of another model.
    """
    return _of_modules(module, Module, addresses)


def module_input(*addresses: str | nn.Module) -> PredicateBase:
    """What some modules are called with.

    >>> from fastrec.predicates import module_input
    >>> module_input("actor")
    module_input('actor')

    Arguments:
        addresses: modules, or globs of addresses, as for ``module``.

    Raises PredicateError for anything else, and without any.
    """
    return _of_modules(module_input, ModuleInput, addresses)


def module_type(*types: str | type[nn.Module]) -> ModuleType:
    """The outputs of modules of some classes; in ``keep_op``, what happens directly in them.

    >>> from torch import nn
    >>> from fastrec.predicates import module_type
    >>> module_type(nn.Conv2d, "*Norm*")
    module_type('Conv2d', '*Norm*')

    Arguments:
        types: globs of class names, or classes. A class stands for its name alone: a subclass doesn't match
            (``nn.Linear`` leaves out ``NonDynamicallyQuantizableLinear``), but another class of the same name
            does.

    Raises PredicateError for anything else, and without any.
    """
    return ModuleType(globs_of("module_type", tuple(map(_class_name, types)), "Linear", Globs))


def inside(*addresses: str | nn.Module) -> PredicateBase:
    """What happens in some modules or anywhere below them.

    >>> from fastrec.predicates import inside, op
    >>> op("relu") & ~inside("head")
    op('relu') & ~inside('head')

    Arguments:
        addresses: modules, or globs of addresses, as for ``module``. A module's own output is not inside it, but
            inside the modules around it.

    Raises PredicateError for anything else, and without any.
    """
    return _of_modules(inside, Inside, addresses)


def _any_matches(globs: Globs, frames: Sequence[Any]) -> bool:
    """Whether one of the modules has an address that matches."""
    return any(frame.module_address in globs or any(alias in globs for alias in frame.aliases) for frame in frames)


def _class_name(value: object) -> object:
    if isinstance(value, type) and issubclass(value, nn.Module):
        return value.__name__
    if isinstance(value, type):
        raise PredicateError(f"module_type({value.__name__}): {value.__name__} is not a subclass of nn.Module")
    if isinstance(value, nn.Module):
        raise PredicateError(
            f"module_type() got a module; give its class: module_type({type(value).__name__}), "
            "or its address to module()"
        )
    return value
