"""Where a thread is in a pass that runs by a plan, and what is known of such passes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fastrec._contracts import Batch
from fastrec.engines._mode import OpMode
from fastrec.engines._static_lesson import Lessons
from fastrec.engines._static_plan import Plan, Step
from fastrec.engines._trie import Node


class Now:
    """Where a thread is in a pass that runs by a plan."""

    __slots__ = ("batch", "course", "held", "mode", "modules", "plan", "run", "step", "times")

    batch: Batch
    course: Course
    held: list[Tensor] | None
    mode: OpMode
    modules: Mapping[int, int]
    plan: Plan
    run: Any
    step: Step
    times: list[float]


class Course:
    """What is known of the passes of one entry that run in the same circumstances."""

    __slots__ = ("called", "last", "left", "lessons", "plan", "tries")

    def __init__(self, called: str) -> None:
        self.called = called
        self.forget()

    def forget(self) -> None:
        """Learn anew."""
        self.plan: Plan | None = None
        self.last: Node | None = None
        self.lessons = Lessons()
        self.tries = 0
        self.left = 0
