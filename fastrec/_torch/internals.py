"""Every private name of torch that fastrec uses: what it is for, and which versions have it.

    from fastrec._torch.internals import graph_task_id

    if graph_task_id() != -1:  # autograd is running a part of the forward pass again
        ...

Torch renames private parts from one version to the next. With all of them in one list, a new version is checked in one
place, and a name that is missing is reported when fastrec is imported: an ImportError names it and the version of
torch. A test makes sure that no file outside of ``_torch/`` reaches into torch by a private name. What is known of
``torch._dynamo`` is in ``_torch/dynamo.py``, which reads it only where a model is compiled and refuses such a model if
a part is missing.

The names are looked up once, here, because most of them are called for every op or module call. A name without a remark
is expected in every version from 2.6 on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._dynamo.guards import TensorGuards as TensorGuards
from torch._ops import OpOverload as OpOverload
from torch._ops import OpOverloadPacket as OpOverloadPacket
from torch._tensor_str import printoptions as printoptions
from torch.nn.modules import module as _module


def find_private(path: str) -> Any:
    """The private part of torch with this name, such as ``_C._current_graph_task_id``."""
    try:
        return reduce(getattr, path.split("."), torch)
    except AttributeError:
        raise ImportError(
            f"fastrec uses torch.{path}, which torch {torch.__version__} does not have; install a version of torch "
            "that this version of fastrec supports, or a newer fastrec"
        ) from None


# --- What this thread is doing --------------------------------------------------------------------------------------

graph_task_id: Callable[[], int] = find_private("_C._current_graph_task_id")
"""Not -1 while autograd runs a backward pass, which is when checkpointing runs a part of the forward pass again."""

functorch_level: Callable[[], Any] = find_private("_C._functorch.peek_interpreter_stack")
"""Not None inside of ``vmap``, ``grad`` and ``jvp``, where values are wrappers that must not escape."""

is_functorch_wrapper: Callable[[Tensor], bool] = find_private("_C._functorch.is_functorch_wrapped_tensor")
functorch_unwrapped: Callable[[Tensor], Tensor] = find_private("_C._functorch.get_unwrapped")

tracing_state: Callable[[], Any] = find_private("_C._get_tracing_state")
"""Not None inside of ``torch.jit.trace``, whose graph must not contain a recorder's own work."""

is_any_autocast_enabled: Callable[[], bool] = find_private("_C._is_any_autocast_enabled")

saved_tensors_hooks_error: Callable[[], str | None] = find_private(
    "_C._autograd._saved_tensors_hooks_get_disabled_error_message"
)
"""Why hooks on saved tensors are forbidden here; None where they are allowed."""

# --- The stack of function modes: what entering and leaving a TorchFunctionMode does, at less cost ------------------

push_function_mode: Callable[[Any], None] = find_private("_C._push_on_torch_function_stack")
pop_function_mode: Callable[[], object] = find_private("_C._pop_torch_function_stack")
function_mode_at: Callable[[int], Any] = find_private("_C._get_function_stack_at")
function_mode_count: Callable[[], int] = find_private("_C._len_torch_function_stack")

are_function_modes_off: Callable[[], bool] = find_private("_C._is_torch_function_all_disabled")
no_function_modes: Any = find_private("_C.DisableTorchFunction")
"""A context in which neither function modes nor ``__torch_function__`` of subclasses are called."""

# --- The stack of dispatch modes: what runs below autograd, as in selective activation checkpointing ----------------

dispatch_mode_count: Callable[[], int] = find_private("_C._len_torch_dispatch_stack")

no_dispatch_modes: Any = find_private("_C._DisableTorchDispatch")
"""A context in which neither dispatch modes nor ``__torch_dispatch__`` of subclasses are called."""

# --- Tensors and their memory ---------------------------------------------------------------------------------------

storage_id: Callable[[Tensor], int] = find_private("_C._storage_id")
storage_use_count: Callable[[int], int] = find_private("_C._storage_Use_Count")
"""How many C++ owners a storage has, by its id; for the tensor itself there is ``Tensor._use_count``."""

TensorBase: type = find_private("_C.TensorBase")
"""The C++ class that defines the properties of tensors (``T``, ``real``)."""

# --- Ops ------------------------------------------------------------------------------------------------------------

registered_op_names: Callable[[], list[str]] = find_private("_C._dispatch_get_all_op_names")

# --- Modules --------------------------------------------------------------------------------------------------------

call_impl: Callable[..., Any] = nn.Module._call_impl
"""What a call of a module runs: its hooks, and its forward."""

wrapped_call_impl: Callable[..., Any] = nn.Module._wrapped_call_impl
"""What ``nn.Module.__call__`` is: it chooses between the plain and the compiled call of a module."""

# Torch only ever fills and empties these dicts, so that references to them stay valid.
GLOBAL_HOOKS: tuple[dict[int, Any], ...] = (
    _module._global_forward_hooks,
    _module._global_forward_pre_hooks,
    _module._global_backward_hooks,
    _module._global_backward_pre_hooks,
)
"""The hooks that run for all modules, registered by ``torch.nn.modules.module.register_module_forward_hook`` etc."""

# --- Private attributes of torch's objects that other files read ----------------------------------------------------

ATTRIBUTES: Mapping[str, str] = {
    "_version": "how often a tensor was written to in place",
    "_use_count": "how many C++ owners a tensor has",
    "_cdata": "the identity of a storage, also of a traced one that has no memory",
    "_modules": "the children of a module; `named_children` would look for duplicates",
    "_parameters": "the parameters of this module alone",
    "_buffers": "the buffers of this module alone",
    "_forward_hooks": "whether a module has hooks; without any, its forward can be called directly",
    "_forward_pre_hooks": "as above",
    "_backward_hooks": "as above",
    "_backward_pre_hooks": "as above",
    "_call_impl": "the call of a module, after the choice between compiled and plain",
    "_compiled_call_impl": "what `module.compile()` made",
    "_orig_mod": "the module that was given to `torch.compile`",
    "_schema": "the signature of a registered op",
}
"""By name, with what they are for: torch has no public way to these, or one that costs too much per call."""
