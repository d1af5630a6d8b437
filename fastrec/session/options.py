"""The options of a recorder, each declared once: ``Recorder`` and ``dry_run`` take them, the signatures show them."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
import torch

from fastrec._errors import OptionError, did_you_mean
from fastrec.events.capture import CaptureSpec

NO_COMPILED_GRADIENTS = (
    "save_gradient=True can't be kept by the compiled engine, whose values are extra outputs of the compiled code: the "
    "gradient that reaches the model's own value does not pass through them. Record the model that was compiled "
    "(model._orig_mod) with engine='eager'"
)

GRADIENTS_NEED_RAM = (
    "a file can't keep gradients; add RAM, as in sink=[RAMSink(), 'run.h5'], or leave keep_grad, save_gradient and "
    "train_mode out"
)


class RecorderOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of a recorder, checked one by one; ``Recorder`` describes each of them."""

    keep_op: Any = None
    keep_module: Any = None
    capture: CaptureSpec = CaptureSpec()
    sink: Any = None
    engine: Any = "auto"
    check_every: int = 1000
    history_size: int = 8
    include_source_events: bool = False
    track_parents: bool = False
    train_mode: bool = False
    retain: int | None = None
    halt: Any = None
    returns_none: bool = False
    autoreset: Literal["next_step", "same_step"] | None = None
    on_predicate_error: Literal["raise", "collect"] = "raise"
    on_forward_error: Literal["drop", "keep"] = "drop"
    random_seed: int | None = None
    allow_unfused: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.capture, CaptureSpec):
            raise OptionError(f"capture={self.capture!r}: give a CaptureSpec, such as CaptureSpec(dtype=torch.float16)")
        for name in ("include_source_events", "track_parents", "train_mode", "returns_none", "allow_unfused"):
            if not isinstance(getattr(self, name), bool):
                raise OptionError(f"{name}={getattr(self, name)!r}: give True or False")
        self._check_choice("autoreset", ("next_step", "same_step", None))
        self._check_choice("on_predicate_error", ("raise", "collect"))
        self._check_choice("on_forward_error", ("drop", "keep"))
        self._check_count("check_every", minimum=1)
        self._check_count("history_size", minimum=0)
        if self.retain is not None:
            self._check_count("retain", minimum=1)
        if self.random_seed is not None:
            self._check_count("random_seed", minimum=0)
        if isinstance(self.engine, str) and self.engine not in ("auto", "eager", "static", "compiled"):
            raise OptionError(f"engine={self.engine!r}: choose one of 'auto', 'eager', 'static' and 'compiled'")
        if self.returns_none and self.halt is None:
            raise OptionError("returns_none=True is only allowed with halt=..., whose passes return None")

    @property
    def default_capture(self) -> CaptureSpec:
        """How values are copied where a predicate keeps them without a spec of its own."""
        return self.capture.with_changes({"keep_grad": True}) if self.train_mode else self.capture

    def capture_of(self, spec: CaptureSpec, dtype: torch.dtype) -> CaptureSpec:
        """The spec for values of a dtype: the default of train_mode keeps gradients only where there can be some."""
        is_default = self.train_mode and spec.keep_grad and spec == self.default_capture
        if is_default and not (dtype.is_floating_point or dtype.is_complex):
            return spec.with_changes({"keep_grad": False, "save_gradient": False})
        return spec

    def _check_choice(self, name: str, allowed: tuple[str | None, ...]) -> None:
        if getattr(self, name) not in allowed:
            raise OptionError(f"{name}={getattr(self, name)!r}: choose one of {', '.join(map(repr, allowed))}")

    def _check_count(self, name: str, minimum: int) -> None:
        value = getattr(self, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            raise OptionError(f"{name}={value!r}: give a whole number from {minimum} up")


def options_from(options: dict[str, Any]) -> RecorderOptions:
    """Options by name as a struct; OptionError for an unknown name."""
    names = RecorderOptions.__struct_fields__
    for name in options:
        if name not in names:
            raise OptionError(f"there is no option {name!r}; {did_you_mean(name, names)}")
    return RecorderOptions(**options)
