"""Where in the source each call was made."""

from __future__ import annotations

import linecache
from pathlib import Path
from types import CodeType, FrameType

import msgspec
from torch import nn, overrides

from fastrec.graph._raw import Stack

_HERE = str(Path(__file__).parent.parent)
_HANDLE = overrides.handle_torch_function.__code__
_MACHINERY = {nn.Module._call_impl.__code__, nn.Module._wrapped_call_impl.__code__}


class StackReader:
    """Reads the frames of calls; those outside of the innermost module are read once per module call."""

    def __init__(self) -> None:
        self._shown: dict[CodeType, bool] = {}

    def read(self, frame: FrameType | None, stop: FrameType | None, outside: Stack | None) -> Stack | None:
        """The frames from one up to another, in front of those outside of that one."""
        shown = self._shown
        found = []
        while frame is not None and frame is not stop:
            code = frame.f_code
            show = shown.get(code)
            if show is None:
                show = shown[code] = code not in _MACHINERY and not code.co_filename.startswith(_HERE)
            if code is _HANDLE and frame.f_back is not None:
                frame = frame.f_back.f_back  # a function of torch that hands itself to a mode
                continue
            if show:
                found.append((code, frame.f_lasti))
            frame = frame.f_back
        for code, instruction in reversed(found):
            outside = (outside, code, instruction)
        return outside


def frames_of(stack: Stack | None) -> list[tuple[CodeType, int]]:
    """Code and instruction of each frame, outermost first."""
    found = []
    while stack is not None:
        stack, code, instruction = stack
        found.append((code, instruction))
    return found[::-1]


def line_of(code: CodeType, instruction: int) -> int:
    """The line of an instruction."""
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
        around = range(max(1, self.line - 2), min(len(lines), self.line + 2) + 1)
        texts = {number: lines[number - 1].rstrip() for number in around}
        margin = min((len(t) - len(t.lstrip()) for t in texts.values() if t), default=0)
        return "\n".join(f"{'--->' if n == self.line else '    '}  {t[margin:]}".rstrip() for n, t in texts.items())

    def __str__(self) -> str:
        code = "\n".join(f"    {line}" for line in self.code.splitlines())
        return (
            f"FuncCallLocation:\n  file: {self.file}\n  line: {self.line}\n  function: {self.function}\n  code:\n{code}"
        )

    __repr__ = __str__


def locations(stack: Stack | None) -> list[FuncCallLocation]:
    """The frames of a call, outermost first."""
    return [location(code, instruction) for code, instruction in frames_of(stack)]


def location(code: CodeType, instruction: int) -> FuncCallLocation:
    """One frame, as people read it."""
    return FuncCallLocation(code.co_filename, line_of(code, instruction), code.co_name)
