"""The states of the random generators that torch's functions draw from."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fastrec._ops import op_facts

# Functions of torch that may draw, by parts of their names. Anything that is not torch's own may draw too.
_DRAWS = re.compile(
    "rand|dropout|bernoulli|normal(?!ize)|uniform|exponential|geometric|cauchy|multinomial|poisson|binomial|gamma"
    "|dirichlet|rrelu|gumbel|fractional|scaleddotproduct|lstm|gru|rnn|lowrank|dropconnect|attention|philox|init"
)


@lru_cache(maxsize=4096)
def may_draw(func: Callable[..., Any]) -> bool:
    """Whether a call of a function may draw random numbers."""
    module = getattr(func, "__module__", None) or ""
    if isinstance(func, torch._ops.OpOverload | torch._ops.OpOverloadPacket) or not _is_torchs(func, module):
        return True
    facts = op_facts(func)
    return facts is None or _DRAWS.search(facts.layer_type) is not None


def _is_torchs(func: Callable[..., Any], module: str) -> bool:
    owner: Any = getattr(func, "__objclass__", None) or getattr(func, "__self__", None)
    if owner is not None and not module:
        module = getattr(owner, "__module__", None) or type(owner).__module__ or ""
    return module.split(".")[0] in ("torch", "_operator", "")


class GeneratorStates:
    """The states before each call; calls between two draws share one copy."""

    def __init__(self) -> None:
        self._shared: Mapping[str, Tensor] | None = None

    def before(self, func: Callable[..., Any], kwargs: Mapping[str, Any]) -> Mapping[str, Tensor]:
        """The states before a call."""
        if may_draw(func):
            self._shared = None
            states = current_states()
            own = kwargs.get("generator")
            if own is not None:
                states["generator"] = own.get_state()
            return states
        if self._shared is None:
            self._shared = current_states()
        return self._shared


def current_states() -> dict[str, Tensor]:
    """The states of the default generators now, by device."""
    states = {"cpu": torch.default_generator.get_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        for index in range(torch.cuda.device_count()):
            states[f"cuda:{index}"] = torch.cuda.get_rng_state(index)
    return states


def set_states(states: Mapping[str, Tensor]) -> None:
    """Put the default generators into earlier states."""
    for device, state in states.items():
        if device == "cpu":
            torch.default_generator.set_state(state)
        elif device.startswith("cuda"):
            torch.cuda.set_rng_state(state, device)
