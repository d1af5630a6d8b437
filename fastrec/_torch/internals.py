"""Every private name of torch that fastrec uses, once, with what it is for.

    from fastrec._torch.internals import graph_task_id

    if graph_task_id() != -1:  # autograd runs a part of the forward pass again
        ...

Torch renames private parts from one version to the next, and a name that is missing must be told when a session opens,
not in the second pass. So no other file of the package reaches into torch by a private name: a test reads them all.
What is known of ``torch._dynamo`` stands in ``_torch/dynamo.py``, which is only read where a model is compiled.

The names are bound when the package is imported, because most are called once per op or module call. Those without a
remark are in every version from 2.4 on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._dynamo.guards import TensorGuards as TensorGuards
from torch._ops import OpOverload as OpOverload
from torch._ops import OpOverloadPacket as OpOverloadPacket
from torch._tensor_str import printoptions as printoptions
from torch.nn.modules import module as _module

# --- What this thread is doing --------------------------------------------------------------------------------------

graph_task_id: Callable[[], int] = torch._C._current_graph_task_id
"""Not -1 while autograd runs a backward pass, and so while checkpointing runs a part of the forward pass again."""

functorch_level: Callable[[], Any] = torch._C._functorch.peek_interpreter_stack
"""Not None inside of ``vmap``, ``grad`` and ``jvp``, where values are wrappers that must not escape."""

is_functorch_wrapper: Callable[[Tensor], bool] = torch._C._functorch.is_functorch_wrapped_tensor
functorch_unwrapped: Callable[[Tensor], Tensor] = torch._C._functorch.get_unwrapped

tracing_state: Callable[[], Any] = torch._C._get_tracing_state
"""Not None inside of ``torch.jit.trace``, into whose graph a recorder's own work must not get."""

is_any_autocast_enabled: Callable[[], bool] = torch._C._is_any_autocast_enabled

saved_tensors_hooks_error: Callable[[], str | None] = torch._C._autograd._saved_tensors_hooks_get_disabled_error_message
"""Why hooks on saved tensors are forbidden here; None where they are not."""

# --- The stack of function modes: what entering and leaving a TorchFunctionMode does, at less cost ------------------

push_function_mode: Callable[[Any], None] = torch._C._push_on_torch_function_stack
pop_function_mode: Callable[[], object] = torch._C._pop_torch_function_stack
function_mode_at: Callable[[int], Any] = torch._C._get_function_stack_at
function_mode_count: Callable[[], int] = torch._C._len_torch_function_stack

are_function_modes_off: Callable[[], bool] = torch._C._is_torch_function_all_disabled
no_function_modes: Any = torch._C.DisableTorchFunction
"""A context in which neither function modes nor ``__torch_function__`` of subclasses are asked."""

# --- Tensors and their memory ---------------------------------------------------------------------------------------

storage_id: Callable[[Tensor], int] = torch._C._storage_id  # type: ignore[attr-defined]
storage_use_count: Callable[[int], int] = torch._C._storage_Use_Count
"""How many C++ owners a storage has, by its id; the count of the tensor itself is ``Tensor._use_count``."""

TensorBase: type = torch._C.TensorBase
"""The class of C++ that has the properties of tensors (``T``, ``real``)."""

# --- Ops ------------------------------------------------------------------------------------------------------------

registered_op_names: Callable[[], list[str]] = torch._C._dispatch_get_all_op_names

# --- Modules --------------------------------------------------------------------------------------------------------

call_impl: Callable[..., Any] = nn.Module._call_impl
"""What a call of a module runs: its hooks, and its forward."""

wrapped_call_impl: Callable[..., Any] = nn.Module._wrapped_call_impl
"""What ``nn.Module.__call__`` is: it chooses between the module's plain and its compiled call."""

# Torch keeps these objects for good, and only fills and empties them.
GLOBAL_HOOKS: tuple[dict[int, Any], ...] = (
    _module._global_forward_hooks,
    _module._global_forward_pre_hooks,
    _module._global_backward_hooks,
    _module._global_backward_pre_hooks,
)

# --- Private attributes of torch's objects that other files read ----------------------------------------------------

ATTRIBUTES: Mapping[str, str] = {
    "_version": "how often a tensor was written in place",
    "_use_count": "how many C++ owners a tensor has",
    "_cdata": "the identity of a storage, also of one that was traced and has no memory",
    "_modules": "the children of a module, which `named_children` would check for duplicates",
    "_parameters": "the parameters of one module",
    "_buffers": "the buffers of one module",
    "_forward_hooks": "whether a module has hooks, without which its forward can be called at once",
    "_forward_pre_hooks": "as above",
    "_backward_hooks": "as above",
    "_backward_pre_hooks": "as above",
    "_call_impl": "a call of one module, past the choice between compiled and plain",
    "_compiled_call_impl": "what `module.compile()` made",
    "_orig_mod": "the module that `torch.compile` was given",
    "_schema": "the signature of a registered op",
}
"""By name, with what they are for: there is no public way to any of them, or one that costs too much per call."""
