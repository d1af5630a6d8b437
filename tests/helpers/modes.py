"""A mode that stands for another recorder."""

from typing import Any

from torch.overrides import TorchFunctionMode

GETTERS = {"is_contiguous", "is_neg", "data_ptr", "__get__"}
"""What a recorder may ask about a value without hiding it from other modes."""


class SeenNames(TorchFunctionMode):
    """Lists the names of the functions that run beneath it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(getattr(func, "__name__", repr(func)))
        return func(*args, **(kwargs or {}))
