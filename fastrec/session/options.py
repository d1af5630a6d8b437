"""The options of a recorder, each declared once."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
import torch

from fastrec._errors import OptionError, did_you_mean
from fastrec.events.capture import CaptureSpec


class RecorderOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a recorder can be told; ``Recorder`` describes each option."""

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

    def __post_init__(self) -> None:
        if not isinstance(self.capture, CaptureSpec):
            raise OptionError(f"capture={self.capture!r}: give a CaptureSpec, such as CaptureSpec(dtype=torch.float16)")
        for name in ("include_source_events", "track_parents", "train_mode", "returns_none"):
            if not isinstance(getattr(self, name), bool):
                raise OptionError(f"{name}={getattr(self, name)!r}: give True or False")
        self._check_choice("autoreset", ("next_step", "same_step", None))
        self._check_choice("on_predicate_error", ("raise", "collect"))
        self._check_choice("on_forward_error", ("drop", "keep"))
        self._check_count("check_every", least=1)
        self._check_count("history_size", least=0)
        if self.retain is not None:
            self._check_count("retain", least=1)
        if self.random_seed is not None:
            self._check_count("random_seed", least=0)
        if isinstance(self.engine, str) and self.engine not in ("auto", "eager", "static", "compiled"):
            raise OptionError(f"engine={self.engine!r}: there are 'auto', 'eager', 'static' and 'compiled'")
        if self.returns_none and self.halt is None:
            raise OptionError("returns_none=True only goes with halt=..., whose passes return None")

    @property
    def default_capture(self) -> CaptureSpec:
        """How a value is copied that a predicate keeps without saying how."""
        return self.capture.with_changes({"keep_grad": True}) if self.train_mode else self.capture

    def capture_of(self, spec: CaptureSpec, dtype: torch.dtype) -> CaptureSpec:
        """The spec for values of a very dtype: train_mode keeps gradients only where there can be some."""
        trains = self.train_mode and spec.keep_grad and spec == self.default_capture
        if trains and not (dtype.is_floating_point or dtype.is_complex):
            return spec.with_changes({"keep_grad": False, "save_gradient": False})
        return spec

    def _check_choice(self, name: str, allowed: tuple[str | None, ...]) -> None:
        if getattr(self, name) not in allowed:
            raise OptionError(f"{name}={getattr(self, name)!r}: choose one of {', '.join(map(repr, allowed))}")

    def _check_count(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise OptionError(f"{name}={value!r}: give a whole number from {least} up")


def options_of(given: dict[str, Any]) -> RecorderOptions:
    """The options given by name; an unknown name is an OptionError that names the close ones."""
    known = RecorderOptions.__struct_fields__
    for name in given:
        if name not in known:
            raise OptionError(f"there is no option {name!r}; {did_you_mean(name, known)}")
    return RecorderOptions(**given)
