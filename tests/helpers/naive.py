"""The plain reference that engines are compared with: hooks for modules, and a mode that clones every result."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from sys import exc_info
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fastrec.ops.facts import op_facts


@dataclass
class Event:
    """One value that appeared, as a record tells about it."""

    kind: str
    site: str
    label: str
    layer_type: str
    module_address: str
    module_stack: tuple[tuple[str, int], ...]
    op_index: int | None
    event_index: int
    value: Tensor = field(repr=False)

    @classmethod
    def of(cls, record: Any) -> "Event":
        """What a record of fastrec tells."""
        ctx = record.ctx
        stack = tuple((frame.module_address, frame.pass_index) for frame in ctx.module_stack)
        return cls(
            ctx.kind,
            ctx.site,
            ctx.label,
            ctx.layer_type,
            ctx.module_address,
            stack,
            ctx.op_index if ctx.kind == "op" else None,
            ctx.event_index,
            record.activation,
        )

    @property
    def facts(self) -> tuple[Any, ...]:
        return tuple(getattr(self, f.name) for f in fields(self) if f.name != "value")


@dataclass
class _Frame:
    address: str
    number: int
    handled: BaseException | None
    ordinals: dict[str, int] = field(default_factory=dict)


def tensors_in(value: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors in a nested value, with their paths."""
    if isinstance(value, Tensor):
        yield path, value
    elif is_dataclass(value) and not isinstance(value, (type, dict)):
        for each in fields(value):
            yield from tensors_in(getattr(value, each.name), f"{path}.{each.name}")
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        for name, item in zip(value._fields, value, strict=True):
            yield from tensors_in(item, f"{path}.{name}")
    elif isinstance(value, (tuple, list)):
        for i, item in enumerate(value):
            yield from tensors_in(item, f"{path}[{i}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from tensors_in(item, path + (f".{key}" if str(key).isidentifier() else f"[{key!r}]"))


class NaiveRecorder(TorchFunctionMode):
    """Clones everything that appears in one pass; modules by hooks on each of them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.events: list[Event] = []
        self._frames: list[_Frame] = []
        self._numbers: dict[str, int] = {}
        self._calls: dict[str, int] = {}
        self._ops = 0
        self._count = 0
        self._handles: list[Any] = []
        for address, module in model.named_modules():
            self._watch(address, module)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        facts = op_facts(func)
        value = args[0] if out is None and facts is not None and facts.layer_type == "setitem" else out
        if self._frames and facts is not None and list(tensors_in(value)):  # outside of the model there is no pass
            self._op(facts, value)
        return out

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for handle in self._handles:
            handle.remove()

    def _watch(self, address: str, module: nn.Module) -> None:
        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            self._enter(address, type(module).__name__.lower().replace("_", ""), (args, kwargs))

        def leave(module: nn.Module, args: Any, out: Any) -> None:
            frame = self._frames[-1]
            raised = exc_info()[1]
            if raised is None or raised is frame.handled:
                self._event("module_exit", address or ":out", type(module).__name__.lower().replace("_", ""), out)
            self._frames.pop()

        # Prepended before and appended after the user's own hooks, to see what really goes in and comes out.
        self._handles += [
            module.register_forward_pre_hook(enter, prepend=True, with_kwargs=True),
            module.register_forward_hook(leave, always_call=True),
        ]

    def _enter(self, address: str, layer_type: str, arguments: Any) -> None:
        number = self._calls[address] = self._calls.get(address, 0) + 1
        self._frames.append(_Frame(address, number, exc_info()[1]))
        args, kwargs = arguments
        self._event("module_enter", f"{address}:in", layer_type, (args, kwargs))

    def _event(self, kind: str, name: str, layer_type: str, value: Any) -> None:
        with torch._C.DisableTorchFunction():
            if kind == "module_enter":
                found = [*tensors_in(value[0]), *tensors_in(value[1])]
            else:
                found = list(tensors_in(value))
            for path, tensor in found:
                dot = ":out" if kind == "module_exit" and path.startswith(".") and name != ":out" else ""
                site = name + dot + path
                number = self._frames[-1].number
                self._keep(kind, site, f"{site}:{number}", layer_type, tensor)
        self._count += 1

    def _op(self, facts: Any, value: Any) -> None:
        ordinals = self._frames[-1].ordinals
        count = ordinals[facts.segment] = ordinals.get(facts.segment, 0) + 1
        number = self._numbers[facts.layer_type] = self._numbers.get(facts.layer_type, 0) + 1
        site = f"{self._frames[-1].address}/{facts.segment}" + (f"_{count}" if count > 1 else "")
        with torch._C.DisableTorchFunction():
            for path, tensor in tensors_in(value):
                self._keep("op", site + path, f"{facts.layer_type}_{number}{path}", facts.layer_type, tensor)
        self._ops += 1
        self._count += 1

    def _keep(self, kind: str, site: str, label: str, layer_type: str, tensor: Tensor) -> None:
        stack = tuple((frame.address, frame.number) for frame in self._frames)
        index = self._ops if kind == "op" else None
        value = tensor.detach().clone()
        self.events.append(Event(kind, site, label, layer_type, stack[-1][0], stack, index, self._count, value))


def naive_events(model: nn.Module, call: Callable[[], Any]) -> list[Event]:
    """The events of one call of a model."""
    recorder = NaiveRecorder(model)
    with recorder:
        call()
    return recorder.events


def events_of(recording: Any, pass_index: int = 0, *, inside: bool = False) -> list[Event]:
    """The events of one pass of a recording, those inside of composites only if asked for."""
    events = [Event.of(record) for record in recording if record.ctx.pass_index == pass_index]
    return [event for event in events if inside or "/" not in event.label]


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal shape, dtype and bytes."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.is_complex():
        a, b = torch.view_as_real(a.resolve_conj()), torch.view_as_real(b.resolve_conj())
    a, b = (t.detach().resolve_neg().contiguous().reshape(-1) for t in (a, b))
    return not a.numel() or torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def assert_same_events(found: list[Event], expected: list[Event]) -> None:
    """The same events in the same order, with equal values to the last bit."""
    assert [event.facts for event in found] == [event.facts for event in expected]
    for mine, theirs in zip(found, expected, strict=True):
        assert same_bits(mine.value, theirs.value), mine


@contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    """A known random state inside, and the state as it was afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
