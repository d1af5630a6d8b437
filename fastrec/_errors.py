"""Every error and warning that fastrec raises.

All errors are FastrecErrors, and each is also the builtin error that fits, so that ``except KeyError`` works as well. A
message says what was given, what is allowed, and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FastrecError(Exception):
    """The base of every error that fastrec raises."""


class OptionError(FastrecError, ValueError):
    """An option has a name or a value that is not allowed, or does not fit another option."""


class PredicateError(FastrecError, ValueError):
    """Something is not a predicate, or a predicate raised an error or returned something that is not a decision."""


class UnsupportedModelError(FastrecError, TypeError):
    """This engine can't record the model, or the way in which it runs."""


class UnsupportedTensorError(FastrecError, ValueError):
    """A selected tensor is of a kind that can't be copied correctly.

    Not a TypeError, which torch's operators would take to mean that they don't support their operands.
    """


class GradientError(FastrecError, RuntimeError):
    """A value was to be kept with gradients where no gradient can flow."""


class SessionError(FastrecError, RuntimeError):
    """The recorder was used outside its block, or its calls don't fit together."""


class BrokenPromiseError(FastrecError, RuntimeError):
    """A pass ran other ops than the passes before it, although the static engine was promised that none would."""


class ContextFieldError(FastrecError, AttributeError):
    """A context does not have this field."""


class RecordKeyError(FastrecError, KeyError):
    """A recording has nothing under this key."""

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would show the quoted repr of the message


class GraphDifferenceError(FastrecError, ValueError):
    """A model ran other operations than in the pass that it is compared with."""


class RaggedError(FastrecError, ValueError):
    """Values that should form one tensor differ in shape, leaf or site."""


class StepError(FastrecError, ValueError):
    """The marked steps, their columns or their episodes don't fit what was asked for."""


class UnsupportedTorchError(FastrecError, ImportError):
    """The installed torch is older than any that fastrec supports."""


class MissingExtraError(FastrecError, ImportError):
    """An optional dependency is not installed."""


class DrawingError(FastrecError, RuntimeError):
    """A drawing can't be made: it is too large, or the program that draws it is missing, fails or takes too long."""


class RecordingExistsError(FastrecError, FileExistsError):
    """Another file is where a recording was to be written."""


class RecordingNotFoundError(FastrecError, FileNotFoundError):
    """There is no recording at this path."""


class RecordingFileError(FastrecError, OSError):
    """The file of a recording can't be written or read, because the disk is full, the folder read-only, or the like."""


class DamagedFileError(FastrecError, ValueError):
    """A file is not a recording, or is damaged or incomplete."""


class FastrecWarning(UserWarning):
    """Something that is not an error but affects what is in the recording."""


MAX_NAMES = 12


class FusedKernelWarning(FastrecWarning):
    """A module runs without its fused kernel while it is recorded, so that its output may differ in the last bits."""


def did_you_mean(name: str, known: Iterable[str], *, most: int = 4) -> str:
    """A hint at the end of a message: the known names that are like a wrong one, or else what there is to choose from.

    >>> did_you_mean("relu_1", ["relu_2", "tanh"])
    "did you mean 'relu_2'?"
    >>> did_you_mean("conv", ["relu_2", "tanh"])
    "choose from 'relu_2', 'tanh'"
    """
    names = list(dict.fromkeys(known))
    close = difflib.get_close_matches(name, names, n=most, cutoff=0.55)
    if close:
        return f"did you mean {' or '.join(repr(n) for n in close)}?"
    if not names:
        return "there are none"
    hidden = len(names) - MAX_NAMES
    return f"choose from {', '.join(map(repr, names[:MAX_NAMES]))}" + (f" and {hidden} more" if hidden > 0 else "")
