"""Every error and warning that fastrec raises: one base class, leaves that also are the matching builtin."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FastrecError(Exception):
    """The base of every error that fastrec raises."""


class OptionError(FastrecError, ValueError):
    """An option has a name or a value that is not allowed."""


class PredicateError(FastrecError, ValueError):
    """A predicate is none, raised, or returned something that is no decision."""


class UnsupportedModelError(FastrecError, TypeError):
    """The model, or the way it runs, cannot be recorded by this engine."""


class UnsupportedTensorError(FastrecError, ValueError):
    """A selected tensor is of a kind of which no right copy can be made.

    No TypeError, because torch's operators take one for a refusal of their operands.
    """


class GradientError(FastrecError, RuntimeError):
    """A value was asked for with gradients where none can flow."""


class SessionError(FastrecError, RuntimeError):
    """The recorder was used outside of its block, or its calls do not fit together."""


class BrokenPromiseError(FastrecError, RuntimeError):
    """A pass ran other ops than the passes before it, which a static engine was promised would not happen."""


class ContextFieldError(FastrecError, AttributeError):
    """A context was asked for a field that it does not have."""


class RecordKeyError(FastrecError, KeyError):
    """A recording has nothing under this key."""

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would show the quoted repr of the message


class GraphDifferenceError(FastrecError, ValueError):
    """A model ran other operations than it did in the pass that it is compared with."""


class RaggedError(FastrecError, ValueError):
    """Values that were asked for as one tensor differ in shape, leaf or site."""


class StepError(FastrecError, ValueError):
    """Marked steps, their columns or their episodes do not fit what was asked."""


class MissingExtraError(FastrecError, ImportError):
    """An optional dependency is not installed."""


class DrawingError(FastrecError, RuntimeError):
    """A drawing can't be made: it is too large, or the program that draws it is missing, fails or takes too long."""


class RecordingExistsError(FastrecError, FileExistsError):
    """A recording would be written over another file."""


class RecordingNotFoundError(FastrecError, FileNotFoundError):
    """There is no recording at this path."""


class RecordingFileError(FastrecError, OSError):
    """A recording's file can't be written or read: the disk is full, the folder read-only, or the like."""


class DamagedFileError(FastrecError, ValueError):
    """A file is no recording, or not all of one."""


class FastrecWarning(UserWarning):
    """Something that is not an error, but that changes what a recording holds."""


class FusedKernelWarning(FastrecWarning):
    """A module runs without its fused kernel while it is recorded, so that its output may differ in the last bits."""


def did_you_mean(name: str, known: Iterable[str], *, most: int = 4) -> str:
    """Say which known names are close to a wrong one, or which there are.

    >>> did_you_mean("relu_1", ["relu_2", "tanh"])
    "did you mean 'relu_2'?"
    """
    names = list(dict.fromkeys(known))
    close = difflib.get_close_matches(name, names, n=most, cutoff=0.55)
    if close:
        return f"did you mean {' or '.join(repr(n) for n in close)}?"
    if not names:
        return "there are none"
    shown = ", ".join(repr(n) for n in names[:12])
    return f"there are {shown}" + (f" and {len(names) - 12} more" if len(names) > 12 else "")
