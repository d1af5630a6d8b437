"""What a predicate may look at for one event, and what a record says about it later.

``RecordContext`` is a view: it computes a field when the field is read, from the facts in the catalog. So a context
that is built for a predicate costs little where the predicate reads one field, and recordings build the same contexts
again, from RAM or from a file. The sets of field names at the end tell the planner when a predicate can be settled:
once per site, once per position, once per pass, or only when the value is there.
"""

from __future__ import annotations

from typing import Any, NoReturn

import msgspec
import torch

from fastrec._errors import ContextFieldError, did_you_mean
from fastrec.events.sites import Catalog, PassInfo, RecordMeta, SampleId, Site


class StackFrame(msgspec.Struct, frozen=True):
    """A module on the call stack; ``pass_index`` counts the calls of that module in this pass, from 1."""

    module_address: str
    module_type: str
    pass_index: int
    aliases: tuple[str, ...] = ()


class RecentEvent(msgspec.Struct, frozen=True):
    """An earlier event of the same pass, without a history of its own."""

    kind: str
    site: str
    label: str
    layer_type: str
    layer_type_num: int
    func_name: str
    module_address: str
    module_type: str


class RecordContext(msgspec.Struct, eq=False):
    """One event: which op or module ran, where, after what, and what its value looks like.

    >>> import torch, fastrec
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh())
    >>> recording = fastrec.record(model, torch.zeros(2, 4), keep_op="tanh")
    >>> ctx = recording[0].ctx
    >>> ctx.label, ctx.site, ctx.module_type, ctx.tensor_shape
    ('tanh_1', '1/tanh', 'Tanh', (2, 8))

    A context is frozen, and computes a field when it is read.

    Fields:
        kind: "op", "module_enter", "module_exit", "input" or "buffer".
        label: the chronological name in the pass ("relu_3"); site: the place, the same in every pass.
        layer_type, layer_type_num, func_name: the canonical op ("add"), its number in the pass, its raw name
            ("__iadd__").
        module_address, module_type: the innermost module; module_pass_index: which call of it this is, from 1.
        module_stack: all modules around the event, outermost first, each with module_address, module_type, pass_index.
        recent_events, recent_ops: what came before in this pass, newest last, at most ``history_size``.
        parent_labels: labels of the values that the op read; needs ``track_parents=True``.
        pass_index, entry, entry_pass: the number of the pass, what it entered, and its number among the passes of that
            entry, both from 0.
        event_index, op_index: position among the events and the ops of the pass; None where ops are not observed.
        output_index, input_output_address: which leaf of a nested value this is; None and "" for a single tensor.
        tensor_shape, tensor_dtype, tensor_device, tensor_requires_grad: those of the value.
        is_bottom_level_func: False for a Python function that is made of several ops.
        time_since_pass_start: seconds; grad_enabled: whether gradients were on when the pass began.
        sample_id, step, phase: what the user said about the pass; step is None in a phase in which no step was marked.
        rank: that of the process, where what several processes recorded is read as one; -1 where it is not known. None
            otherwise, and while it is recorded, when ``torch.distributed.get_rank()`` tells it.
    """

    _catalog: Catalog
    _site: Site
    _meta: RecordMeta
    _info: PassInfo
    _time: float
    _step: int | None

    @property
    def kind(self) -> str:
        return self._site.kind

    @property
    def label(self) -> str:
        return self._meta.label

    @property
    def site(self) -> str:
        return self._site.name

    @property
    def layer_type(self) -> str:
        return self._site.layer_type

    @property
    def layer_type_num(self) -> int:
        return self._meta.number

    @property
    def func_name(self) -> str:
        return self._site.func_name

    @property
    def module_address(self) -> str:
        return self._site.module_address

    @property
    def module_type(self) -> str:
        return self._site.module_type

    @property
    def module_pass_index(self) -> int:
        return self._meta.module_pass

    @property
    def module_stack(self) -> tuple[StackFrame, ...]:
        return tuple(
            StackFrame(frame.module_address, frame.module_type, number, frame.aliases)
            for frame, number in zip(self._site.frames, self._meta.stack_passes, strict=True)
        )

    @property
    def recent_events(self) -> tuple[RecentEvent, ...]:
        return self._recent("recent_events", self._meta.recent_events)

    @property
    def recent_ops(self) -> tuple[RecentEvent, ...]:
        return self._recent("recent_ops", self._meta.recent_ops)

    @property
    def parent_labels(self) -> tuple[str, ...]:
        if self._meta.parents is None:
            raise ContextFieldError(
                "parent_labels are only known where the recorder was opened with track_parents=True"
            )
        return self._meta.parents

    @property
    def pass_index(self) -> int:
        return self._info.index

    @property
    def entry(self) -> str:
        return self._catalog.entries[self._info.entry]

    @property
    def entry_pass(self) -> int:
        return self._info.entry_pass

    @property
    def event_index(self) -> int | None:
        return self._meta.event_index

    @property
    def op_index(self) -> int | None:
        return self._meta.op_index

    @property
    def output_index(self) -> int | None:
        return self._site.output_index

    @property
    def input_output_address(self) -> str:
        return self._site.output_address

    @property
    def tensor_shape(self) -> tuple[int, ...]:
        return self._meta.shape

    @property
    def tensor_dtype(self) -> torch.dtype:
        return torch_dtype(self._meta.dtype)

    @property
    def tensor_device(self) -> torch.device:
        return torch.device(self._meta.device)

    @property
    def tensor_requires_grad(self) -> bool:
        return self._meta.requires_grad

    @property
    def is_bottom_level_func(self) -> bool:
        return self._site.is_bottom_level_func

    @property
    def time_since_pass_start(self) -> float:
        return self._time

    @property
    def grad_enabled(self) -> bool:
        return self._info.grad

    @property
    def sample_id(self) -> SampleId | None:
        return self._info.sample_id

    @property
    def step(self) -> int | None:
        return self._step

    @property
    def phase(self) -> str:
        return self._catalog.phases[self._info.phase]

    @property
    def rank(self) -> int | None:
        return self._catalog.rank_of_pass(self._info.index)

    def _recent(self, name: str, triples: tuple[tuple[int, int, str], ...] | None) -> tuple[RecentEvent, ...]:
        if triples is None:
            raise ContextFieldError(
                f"{name} are not observed, because this session keeps module outputs only; give keep_op=, or a "
                "keep_module= predicate that reads them"
            )
        events = []
        for site_number, number, label in triples:
            site = self._catalog.sites[site_number]
            events.append(
                RecentEvent(
                    site.kind,
                    site.name,
                    label,
                    site.layer_type,
                    number,
                    site.func_name,
                    site.module_address,
                    site.module_type,
                )
            )
        return tuple(events)

    def __getattr__(self, name: str) -> Any:
        if name in FIELDS:  # its property raised an AttributeError; ask it again, so that its own message is seen
            return vars(RecordContext)[name].fget(self)
        raise ContextFieldError(f"a context has no field {name!r}; {did_you_mean(name, FIELDS)}")

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise ContextFieldError(f"a context is frozen; {name!r} can't be set")

    def __delattr__(self, name: str) -> NoReturn:
        raise ContextFieldError(f"a context is frozen; {name!r} can't be deleted")

    def __repr__(self) -> str:
        return (
            f"RecordContext({self.label!r}, site={self.site!r}, kind={self.kind!r}, {format_shape(self.tensor_shape)} "
            f"{self._meta.dtype}, pass {self.pass_index})"
        )


class PredicateFailure(msgspec.Struct, frozen=True):
    """A predicate that raised: its repr, the event that it was asked about, and the error."""

    predicate: str
    context: RecordContext
    error: str


FIELDS: tuple[str, ...] = tuple(n for n, v in vars(RecordContext).items() if isinstance(v, property))
"""The names of all fields of a context."""

STRUCTURAL_FIELDS = frozenset(
    {
        "kind",
        "site",
        "layer_type",
        "func_name",
        "module_address",
        "module_type",
        "module_stack",
        "output_index",
        "input_output_address",
        "is_bottom_level_func",
    }
)
"""The fields that are the same at every event of a site; a predicate that reads no others is settled once per site."""

PATH_FIELDS = frozenset(
    {
        "label",
        "layer_type_num",
        "module_pass_index",
        "recent_events",
        "recent_ops",
        "event_index",
        "op_index",
    }
)
"""The fields that are the same whenever the same events came before in the pass, that is, per position."""

LEAF_FIELDS = frozenset({"site", "output_index", "input_output_address"})
"""The structural fields that differ between the leaves of a nested value."""

PASS_FIELDS = frozenset({"pass_index", "entry", "entry_pass", "phase", "sample_id", "step", "grad_enabled", "rank"})
"""The fields that are the same for all events of a pass, while it runs."""

TENSOR_FIELDS = frozenset({"tensor_shape", "tensor_dtype", "tensor_device", "tensor_requires_grad"})
"""The fields that are known only when the value is there."""


def format_shape(shape: tuple[int, ...]) -> str:
    """A shape as it is shown to people.

    >>> format_shape((8, 64)), format_shape(())
    ('8x64', 'scalar')
    """
    return "x".join(map(str, shape)) or "scalar"


def dtype_name(dtype: torch.dtype) -> str:
    """The short name of a dtype ("float32")."""
    return str(dtype).removeprefix("torch.")


def torch_dtype(name: str) -> torch.dtype:
    """The dtype of a short name ("float32")."""
    dtype = getattr(torch, name)
    if not isinstance(dtype, torch.dtype):
        raise ContextFieldError(f"{name!r} is not the name of a torch dtype")
    return dtype
