"""Where in the source an operation was computed: call stacks, read cheaply and shown later.

    stack = StackReader().read(frame, stop, around)   # while the pass runs: a chain of (code, instruction)
    locations(stack)[-1]                              # afterwards: file, line, function, and the source around it

Reading a stack for each operation must not cost more than the operation. So only the frames inside the innermost
module call are walked, the chain around them is that of the module call, and line numbers are worked out on demand.
"""

from __future__ import annotations

import linecache
import os
from pathlib import Path
from types import CodeType, FrameType

import msgspec
from torch import overrides

from fastrec._torch.internals import call_impl, wrapped_call_impl
from fastrec.graph.raw import Stack

_FASTREC = str(Path(__file__).parent.parent) + os.sep

# How a Python function of torch hands itself to a function mode. This frame and that of the function itself say nothing
# about the model.
_HANDS_TO_MODE = overrides.handle_torch_function.__code__

# What runs in every module call, between the caller and the forward method.
_MODULE_CALL = {call_impl.__code__, wrapped_call_impl.__code__}


class StackReader:
    """Reads the frames of calls."""

    def __init__(self) -> None:
        self._is_shown: dict[CodeType, bool] = {}

    def read(self, frame: FrameType | None, stop: FrameType | None, around: Stack | None) -> Stack | None:
        """The frames from ``frame`` up to ``stop``, without the latter, in front of the chain around them."""
        is_shown = self._is_shown
        inner = []
        while frame is not None and frame is not stop:
            code = frame.f_code
            show = is_shown.get(code)
            if show is None:
                show = is_shown[code] = code not in _MODULE_CALL and not code.co_filename.startswith(_FASTREC)
            if code is _HANDS_TO_MODE and frame.f_back is not None:
                frame = frame.f_back.f_back
                continue
            if show:
                inner.append((code, frame.f_lasti))
            frame = frame.f_back
        for code, instruction in reversed(inner):
            around = (around, code, instruction)
        return around


def line_of(code: CodeType, instruction: int) -> int:
    """The line of an instruction; the first line of the code where it has no such instruction."""
    for start, end, line in code.co_lines():
        if start <= instruction < end and line is not None:
            return line
    return code.co_firstlineno


class FuncCallLocation(msgspec.Struct, frozen=True):
    """A line of source that was running when an operation was computed.

    >>> from fastrec.graph import FuncCallLocation
    >>> FuncCallLocation(file="model.py", line=3, function="forward").code
    'source not available'
    """

    file: str
    line: int
    function: str

    @property
    def code(self) -> str:
        """The line with two lines before and after it, marked by an arrow."""
        lines = linecache.getlines(self.file)
        if not 0 < self.line <= len(lines):
            return "source not available"
        numbers = range(max(1, self.line - 2), min(len(lines), self.line + 2) + 1)
        texts = {number: lines[number - 1].rstrip() for number in numbers}
        margin = min((len(text) - len(text.lstrip()) for text in texts.values() if text), default=0)
        return "\n".join(
            f"{'--->' if n == self.line else '    '}  {text[margin:]}".rstrip() for n, text in texts.items()
        )

    def __str__(self) -> str:
        code = "\n".join(f"    {line}" for line in self.code.splitlines())
        return (
            f"FuncCallLocation:\n  file: {self.file}\n  line: {self.line}\n  function: {self.function}\n  code:\n{code}"
        )

    __repr__ = __str__


def locations(stack: Stack | None) -> list[FuncCallLocation]:
    """The frames of a call, outermost first."""
    frames = []
    while stack is not None:
        stack, code, instruction = stack
        frames.append(FuncCallLocation(code.co_filename, line_of(code, instruction), code.co_name))
    return frames[::-1]
