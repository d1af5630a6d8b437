"""The tracer: runs each op of a forward pass, and notes what ran and where its arguments came from.

    capture = Capture()
    tracer = GraphTracer(ModelState(roots), capture, Saver(request, capture.gradients))
    engine = EagerEngine(performs=True)
    engine.open(roots, tracer)      # from here on the engine hands every op, composite and module call to the tracer

The edges of the graph follow the identity of tensors: what an op returned is remembered by its ``id``, and when the
same object is an argument later, it came from that op. Nothing is put on the tensor itself, where the user would see
it. An id may be reused once its tensor is gone, so a weak reference is kept beside it.

Values also move without an op, and each way has its own rule:

- a write through another view (``y[0].mul_(2)``, then ``y`` is read): ``Writes`` compares memory; where a module takes
  or returns such a ``y``, its value is an operation of its own, see ``_current``;
- a buffer that a function wrote besides returning its result, as batch norm does: it is read again, as a child of the
  writer;
- ``x.data``, ``x.data = y``: the same values in another tensor, see ``glance``;
- wrappers of ``vmap`` and the like: ``Transforms`` looks inside;
- a tensor that came into being without a function that a mode sees (``torch.from_numpy``, another thread): it is an
  operation without parents, ``external``;
- a composite or a module whose inside could not be seen: it becomes one op.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterable, Mapping
from time import perf_counter
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from fastrec._torch.internals import (
    TensorBase,
    functorch_level,
    is_any_autocast_enabled,
    is_functorch_wrapper,
    no_function_modes,
)
from fastrec._torch.trees import argument_leaves, leaves
from fastrec.engines._protocol import BasicRun
from fastrec.events.position import Position
from fastrec.events.sites import Site
from fastrec.graph.call_stack import StackReader
from fastrec.graph.externals import Externals
from fastrec.graph.raw import (
    Capture,
    CapturedCall,
    CapturedOp,
    ConstantTensor,
    FailedCall,
    ModuleCall,
    OpKind,
    Overwritten,
    Parameter,
    Ref,
    Stack,
    ValueRead,
    flat,
    template_of,
)
from fastrec.graph.saving import Saver
from fastrec.graph.tracking import GeneratorStates, ModelState, Transforms, Writes
from fastrec.ops.facts import OpFacts, reads_inplace_flag

# Arguments that are in a template as they are; most arguments other than tensors are of these types.
_ATOMS = frozenset(
    (int, float, bool, complex, str, bytes, type(None), type(Ellipsis), torch.dtype, torch.device, torch.Size)
)

# Functions by which Python looks at a value, and what a ValueRead calls them.
_VALUE_READS: Mapping[Any, str] = {
    getattr(Tensor, name): name.strip("_")
    for name in ("__bool__", "item", "__int__", "__float__", "__index__", "__complex__", "tolist")
}

_GET_GRADIENT: Any = vars(TensorBase)["grad"].__get__

_SET_DATA: Any = vars(TensorBase)["data"].__set__


class GraphTracer:
    """Runs each op of a pass, and notes where its arguments came from.

    With ``takes_inputs``, when a user's function runs the model and its inputs are unknown, each tensor from outside is
    an input. ``outside`` is the frame that runs the pass, where call stacks begin.
    """

    def __init__(self, state: ModelState, capture: Capture, saver: Saver, *, takes_inputs: bool = False) -> None:
        self.outside: FrameType | None = None
        self._state = state
        self._capture = capture
        self._ops = capture.ops
        self._refs: list[Ref] = []  # one for each operation, for all templates in which it stands
        self._saver = saver
        self._takes_inputs = takes_inputs
        self._generators = GeneratorStates()
        self._writes = Writes()
        self._transforms = Transforms()
        self._externals = Externals()
        self._stacks = StackReader()
        self._producers: dict[int, tuple[weakref.ref[Tensor], int]] = {}  # the operation that a tensor came from
        self._constants: dict[int, tuple[weakref.ref[Tensor], int, ConstantTensor]] = {}
        self._buffer_writers: dict[int, int] = {}  # the operation that wrote a buffer without returning it
        self._source_counts: dict[str, int] = {}
        self._open_calls: list[tuple[ModuleCall, FrameType]] = []
        self._module: ModuleCall | None = None
        # What the arguments of the current call came from; filled while its template is made.
        self._parents: list[int] = []
        self._parameters: list[Parameter] = []
        # The latest op that raised, and the innermost module that an exception left, with how much had been seen then.
        self._raised: tuple[Exception, CapturedCall, tuple[int, ...], ModuleCall | None] | None = None
        self._left_by_error: tuple[int, int, ModuleCall] | None = None

    # What an engine asks of every listener.

    def tap(self, place: Position, site: Site) -> None:
        """Nothing is tapped."""

    def may_keep(self, site: Site) -> bool:
        """Everything is traced."""
        return True

    def begin(self, entry: str) -> BasicRun:
        """A call of a root begins."""
        return BasicRun()

    def end(self, run: BasicRun, error: BaseException | None) -> bool:
        """A call of a root ended."""
        return False

    # What an engine tells an OpRunner.

    def on_op(
        self, facts: OpFacts, label: str, site: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run an op, and note it if it returns tensors."""
        template = self._template
        parents: list[int] = []
        parameters: list[Parameter] = []
        self._parents, self._parameters = parents, parameters
        # Before the op runs, because it may write to its arguments. Atoms are left out here rather than in the method:
        # most arguments are atoms, and this is asked for each argument of each op.
        arg_templates = tuple([a if type(a) in _ATOMS else template(a) for a in args])
        kwarg_templates = {k: a if type(a) in _ATOMS else template(a) for k, a in kwargs.items()} if kwargs else kwargs
        states = self._generators.before(func, kwargs)
        started = perf_counter()
        try:
            out = func(*args, **kwargs) if kwargs else func(*args)
        except Exception as error:
            call = CapturedCall(func, facts.func_name, facts.layer_type, label, site, arg_templates, kwarg_templates)
            self._raised = error, call, tuple(parents), self._module
            raise
        seconds = perf_counter() - started
        writes = reads_inplace_flag(facts, args, kwargs)
        value = args[0] if out is None and writes and args else out  # `x[i] = y` returns nothing
        if type(value) is not Tensor and next(leaves(value), None) is None:
            return out
        call = CapturedCall(
            func,
            facts.func_name,
            facts.layer_type,
            label,
            site,
            arg_templates,
            kwarg_templates,
            tuple(dict.fromkeys(parameters)),
            states,
            seconds,
            self._stack(2),
            writes,
            _autocast_dtypes() if is_any_autocast_enabled() else (),
        )
        # To copy a value or to look at its storage must not become an op of the pass.
        with no_function_modes():
            self._add_values(call, tuple(parents), value, args, kwargs)
        return out

    def on_composite(
        self, place: Position, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], inside: Callable[[], Any]
    ) -> Any:
        """Run a composite. Its ops are noted one by one; if none of them returned its value, it is an op itself."""
        first = len(self._ops)
        out = inside()
        produced = self._produced(out)
        if len(produced) == sum(1 for _ in leaves(out)):
            label, site = place.label, place.site.name
            self._capture.composites.update({(label, site, path): op for path, op in produced.items()})
            return out
        parents: list[int] = []
        parameters: list[Parameter] = []
        self._parents, self._parameters = parents, parameters
        call = CapturedCall(func, place.site.func_name, place.site.layer_type, place.label, place.site.name)
        call.args = tuple(map(self._template, args))
        call.kwargs = {key: self._template(value) for key, value in kwargs.items()}
        call.parameters = tuple(dict.fromkeys(parameters))
        call.stack = self._stack(2)
        # The last op that was seen inside is a parent: the unseen rest of the composite is likely to have read it.
        inner = range(first, len(self._ops))
        with no_function_modes():
            unseen = [value for _, value in leaves(out) if self._producer(value) is None]
            self._add_values(call, tuple(dict.fromkeys((*parents, *inner[-1:]))), unseen, args, kwargs)
        return out

    def on_other_function(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a function that is not an event; note if Python looks at a value, or gets it in another tensor."""
        out = func(*args, **kwargs)
        how = _VALUE_READS.get(func)
        if how is not None:
            producer = self._producer(args[0])
            if producer is not None:
                read = ValueRead(producer, how, out if how != "tolist" else None, self._stack(2), len(self._ops))
                self._capture.value_reads.append(read)
        elif func == _SET_DATA:
            producer = self._producer(args[1])
            if producer is None:
                self._producers.pop(id(args[0]), None)
            else:
                self._bind(args[0], producer)  # `x.data = y`: from now on x has the values of y
        elif func == _GET_GRADIENT:
            if isinstance(out, Tensor):
                self._constant(out)  # what a backward pass left there, not the values of this tensor
        elif isinstance(out, Tensor) and args and isinstance(args[0], Tensor) and self._producer(out) is None:
            producer = self._producer(args[0])  # `x.data`: the same values in another tensor
            if producer is not None:
                self._bind(out, producer)
        return out

    def on_enter(self, place: Position, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A module is called."""
        frame = sys._getframe(2)  # the engine's frame for this module call; the model's own frames are inside it
        stack = self._stack(3)
        site, frame_of_module = place.site, place.site.frames[-1]
        call = ModuleCall(
            frame_of_module.module_address, frame_of_module.module_type, place.number, self._module, stack
        )
        call.aliases = frame_of_module.aliases
        entered = {}
        # Most modules take a single tensor, which needs no walk through nested arguments.
        is_plain = len(args) == 1 and type(args[0]) is Tensor and not kwargs
        for path, value in (("[0]", args[0]),) if is_plain else argument_leaves(args, kwargs):
            producer = self._producer(value)
            if producer is None and self._takes_inputs and not self._open_calls:
                producer = self._add_input(value, f"{site.name}{path}").index
            if producer is not None:
                if self._writes.by_storage:
                    with no_function_modes():
                        producer = self._current(value, producer, f"{site.name}/:written")
                entered[path] = producer
        call.entered_at = entered
        self._open_calls.append((call, frame))
        self._module = call
        call.ops = len(self._ops)
        self._capture.module_calls.append(call)
        call.started = perf_counter()

    def on_leave(self, place: Position, out: Any) -> None:
        """A module returned."""
        call, _ = self._open_calls.pop()
        call.exited_at = self._exited(out, call.address)
        self._close(call)
        self._capture.returns.append(call)

    def on_opaque_module(self, place: Position, module: nn.Module, out: Any) -> None:
        """A module whose inside could not be seen, such as a scripted one, is one op."""
        entered, _ = self._open_calls[-1]
        site = place.site
        call = CapturedCall(
            module, site.func_name, site.layer_type, place.label, f"{site.frames[-1].module_address}/:hidden"
        )
        call.args = tuple(self._refs[op] for op in entered.entered)
        call.stack = entered.stack
        with no_function_modes():
            self._add_values(call, entered.entered, out, (), {})

    def on_thread_start(self, place: Position, name: str) -> None:
        """Work was given to another thread."""
        address = self._module.address if self._module is not None else ""
        self._capture.unseen.append(
            f"the module {address!r} gave work to another thread, by {name}, and the ops that ran there were not seen"
        )

    def on_exception(self, place: Position) -> None:
        """An exception left a module, after those that were open inside it."""
        address, number = place.site.frames[-1].module_address, place.number
        if any((call.address, call.number) == (address, number) for call, _ in self._open_calls):
            closed = None
            while closed is None or (closed.address, closed.number) != (address, number):
                closed, _ = self._open_calls.pop()
                self._close(closed)
                seen = len(self._ops), len(self._capture.module_calls)
                if self._left_by_error is None or self._left_by_error[:2] != seen:
                    self._left_by_error = (*seen, closed)

    # What the runner of the pass tells it.

    def inputs(self, prefix: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """The pass begins with these arguments."""
        for path, value in argument_leaves(args, kwargs):
            if self._producer(value) is None:
                self._add_input(value, f"{prefix}{path}")

    def outputs(self, out: Any) -> None:
        """The pass returned this value."""
        self._externals.returned = {id(value) for _, value in leaves(out)}
        for path, value in leaves(out):
            self._parents = []
            with no_function_modes():
                call = CapturedCall(None, "", "output", "", f":out{path}", (self._tensor_template(value),))
                op = self._add("output", call, tuple(self._parents), value)
                op.path = op.address = path

    def failed(self, error: BaseException) -> None:
        """An exception ended the pass; the model may have caught others before."""
        module = None
        if self._left_by_error is not None:
            *seen, left = self._left_by_error
            if seen == [len(self._ops), len(self._capture.module_calls)]:
                module = left
        text = f"{type(error).__name__}: {error}"
        self._capture.failure = FailedCall(text, None, (), module)
        if self._raised is not None and self._raised[0] is error:
            _, call, parents, module = self._raised
            self._capture.failure = FailedCall(text, call, parents, module)

    def finish(self) -> None:
        """Settle what came from outside, and drop the capture, which the engine's state for this thread may hold."""
        self._externals.settle(self._ops, self._saver.snapshot)
        self._capture = Capture()
        self._ops = self._capture.ops
        self._refs = []
        self._producers.clear()
        self._constants.clear()
        self._buffer_writers.clear()
        self._raised = self._left_by_error = None

    # Templates: what takes an argument's place, and which operation it came from.

    def _template(self, argument: Any) -> Any:
        kind = type(argument)
        if kind is Tensor:
            return self._tensor_template(argument)
        if kind is nn.Parameter:
            # Once an op has written to a parameter in place, the parameter is that op's value.
            is_source = id(argument) not in self._producers
            return self._source_template(argument) if is_source else self._tensor_template(argument)
        if kind is tuple and _ATOMS.issuperset(map(type, argument)):
            return argument
        return template_of(argument, self._tensor_template)

    def _tensor_template(self, value: Tensor) -> Any:
        producer = self._producers.get(id(value))
        if producer is None or producer[0]() is not value:
            return self._source_template(value)
        op = producer[1]
        if op not in self._parents:
            self._parents.append(op)
        if self._writes.by_storage:
            with no_function_modes():
                writers = self._writes.since(value, op)
                if writers:
                    self._parents.extend(writer for writer in writers if writer not in self._parents)
                    return Overwritten(op, writers, self._saver.snapshot(value))
        return self._refs[op]

    def _source_template(self, value: Tensor) -> Any:
        """The reference to a tensor that no op returned."""
        parameter = self._state.parameter(value)
        if parameter is not None:
            self._parameters.append(parameter)
            return parameter
        index = self._source(value)
        if index is None:
            if id(value) in self._constants or self._state.has_attribute(value):
                return self._constant(value)
            is_input = self._takes_inputs and type(value) is not nn.Parameter
            index = (self._add_input(value, ":in") if is_input else self._add_external(value)).index
        if index not in self._parents:
            self._parents.append(index)
        return self._refs[index]

    def _constant(self, value: Tensor) -> ConstantTensor:
        """One reference for all uses of a constant, until it is written to."""
        version = 0 if value.is_inference() else value._version
        entry = self._constants.get(id(value))
        if entry is not None and entry[0]() is value and entry[1] == version:
            return entry[2]
        with no_function_modes():
            shape = () if value.is_nested else tuple(value.shape)
            constant = ConstantTensor(shape, value.dtype, self._saver.snapshot(value))
        self._constants[id(value)] = (weakref.ref(value), version, constant)
        return constant

    def _producer(self, value: Any) -> int | None:
        """The operation that a value came from."""
        producer = self._producers.get(id(value))
        return producer[1] if producer is not None and producer[0]() is value else None

    def _produced(self, out: Any) -> dict[str, int]:
        """The operation that each leaf of a value came from."""
        if type(out) is Tensor:
            producer = self._producer(out)
            return {} if producer is None else {"": producer}
        return {path: op for path, value in leaves(out) if (op := self._producer(value)) is not None}

    def _exited(self, out: Any, address: str) -> dict[str, int]:
        """The operation whose value each leaf of a module's value is."""
        exited = self._produced(out)
        if exited and type(out) is Tensor and not self._writes.by_storage:
            return exited
        with no_function_modes():
            for path, value in leaves(out):
                index = exited[path] if path in exited else self._source(value)
                if index is not None:
                    exited[path] = self._current(value, index, f"{address}/:written")
        return exited

    def _source(self, value: Tensor) -> int | None:
        """The operation that a tensor came from without a call: a buffer, or out of a transform."""
        index = None
        if self._transforms.by_storage or is_functorch_wrapper(value):
            index = self._transforms.producer(value, self._producer)
        if index is None and (address := self._state.buffer_address(value)) is not None:
            index = self._add_buffer(value, address).index
        return index

    def _current(self, value: Tensor, op: int, site: str) -> int:
        """The operation whose value a tensor has now: after a write through a view, that is a new one.

        No call returned that value, but a module may, and it has to be found under the module's address. The new
        operation is what ``aten.alias`` would return: the same memory, read once more.
        """
        writers = self._writes.since(value, op) if self._writes.by_storage else ()
        if not writers:
            return op
        func = torch.ops.aten.alias.default
        written = Overwritten(op, writers, self._saver.snapshot(value))
        call = CapturedCall(func, func.__name__, "alias", "alias", site, (written,), stack=self._stack(3))
        return self._add_value(call, (op, *writers), value).index

    def _bind(self, value: Tensor, op: int) -> None:
        self._producers[id(value)] = (weakref.ref(value), op)

    # New operations.

    def _add_values(
        self, call: CapturedCall, parents: tuple[int, ...], out: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        """An op returned: each tensor in its value is an operation."""
        if type(out) is Tensor:
            self._add_value(call, parents, out)
            values: Iterable[Tensor] = (out,)
        else:
            values = []
            for index, (path, value) in enumerate(leaves(out)):
                op = self._add_value(call, parents, value)
                if path:
                    op.path, op.output_index = path, index
                values.append(value)
        if call.inplace:
            self._note_writes(call, values, args, kwargs)

    def _add_value(self, call: CapturedCall, parents: tuple[int, ...], value: Tensor) -> CapturedOp:
        op = self._add("op", call, parents, value)
        op.module = self._module
        self._bind(value, op.index)
        if functorch_level() is not None:
            self._transforms.note(value, op.index)
        return op

    def _add_external(self, value: Tensor) -> CapturedOp:
        """A tensor that neither the model holds nor any function returned that was seen.

        It may have been there before the pass, in a closure say, or have come into being in it. Which of these is
        known only when the pass has ended, see ``Externals``.
        """
        place = self._module.address if self._module is not None else ""
        with no_function_modes():
            op = self._add("op", CapturedCall(None, "", "external", "", f"{place}/:external"), (), value)
        op.module = self._module
        self._bind(value, op.index)
        self._externals.note(value, op)
        return op

    def _add_input(self, value: Tensor, site: str) -> CapturedOp:
        op = self._add_source("input", value, site)
        op.address = site.rpartition(":in")[2]
        return op

    def _add_buffer(self, value: Tensor, address: str) -> CapturedOp:
        writer = self._buffer_writers.pop(id(value), None)
        op = self._add_source("buffer", value, f"{address}:buffer", () if writer is None else (writer,))
        op.address = address
        op.module = self._module
        return op

    def _add_source(self, kind: OpKind, value: Tensor, site: str, parents: tuple[int, ...] = ()) -> CapturedOp:
        number = self._source_counts[kind] = self._source_counts.get(kind, 0) + 1
        with no_function_modes():
            op = self._add(kind, CapturedCall(None, "", kind, f"{kind}_{number}", site), parents, value)
            self._bind(value, op.index)
        return op

    def _add(self, kind: OpKind, call: CapturedCall, parents: tuple[int, ...], value: Tensor) -> CapturedOp:
        index = len(self._ops)
        op = CapturedOp.of(index, kind, call, parents, value)
        self._ops.append(op)
        self._refs.append(Ref(index))
        if self._saver.saves_any:
            self._saver.save(op, value)
        return op

    # Writes in place.

    def _note_writes(
        self, call: CapturedCall, values: Iterable[Tensor], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        """Note which memory an op wrote: that of its output if it is also an argument, else buffers it was given."""
        written = [value for value in values if any(value is a for a in args)]
        if not written:
            arguments = {id(a) for a in flat((args, dict(kwargs))) if isinstance(a, Tensor)}
            written = [value for value in values if id(value) in arguments]
        for value in written:
            _, op = self._producers[id(value)]
            self._writes.note(value, op)
            self._note_buffer_write(value, op)
        if not written:  # a batch norm returns a new tensor, and updates its statistics
            for value in self._state.buffers_among(flat((args, dict(kwargs)))):
                self._producers.pop(id(value), None)
                op = self._buffer_writers[id(value)] = self._ops[-1].index
                self._note_buffer_write(value, op)

    def _note_buffer_write(self, value: Tensor, op: int) -> None:
        address = self._state.buffer_address(value)
        if address is not None:
            self._capture.buffer_writes.append((address, op))

    # Module calls and call stacks.

    def _close(self, call: ModuleCall) -> None:
        call.seconds = perf_counter() - call.started
        call.ops = len(self._ops) - call.ops
        self._module = call.parent

    def _stack(self, depth: int) -> Stack | None:
        """The call stack, up to the innermost module call and from there on that of the module call itself.

        ``depth`` is the number of frames between the caller of this method and the model: those of the engine.
        """
        stop, around = self.outside, None
        if self._open_calls:
            call, stop = self._open_calls[-1]
            around = call.stack
        return self._stacks.read(sys._getframe(depth + 1), stop, around)


def _autocast_dtypes() -> tuple[tuple[str, torch.dtype], ...]:
    return tuple((d, torch.get_autocast_dtype(d)) for d in ("cpu", "cuda") if torch.is_autocast_enabled(d))
