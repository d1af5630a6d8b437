"""Whether vectorised environments ended in a session that was not told how they reset.

    ends = EndsOfEnvironments()
    ends.see(phase, {"terminated": np.array([False, True])})  # at each step
    ends.see(phase, {"terminated": np.array([False, False])})
    ends.message()  # a warning: is the second step of environment 1 a reset, or the first of an episode?

The steps themselves don't say it, except where an environment ends twice running: a step that only resets can't end.
"""

from __future__ import annotations

from collections.abc import Mapping

from fastrec.recording._source import Array
from fastrec.recording._steps import AUTORESET_WORDS, END_COLUMNS


class EndsOfEnvironments:
    """Sees the columns of each step, phase by phase."""

    def __init__(self) -> None:
        self._last: dict[int, Array] = {}  # which environments of a phase ended in its last step
        self._unknown: set[int] = set()
        self._settled: set[int] = set()

    def see(self, phase: int, columns: Mapping[str, Array]) -> None:
        """The columns of one step of a phase."""
        ends = [columns[name] for name in END_COLUMNS if name in columns]
        if not ends or not ends[0].ndim or phase in self._settled:
            return
        now = ends[0].astype(bool)
        for column in ends[1:]:
            now = now | column.astype(bool)
        before = self._last.get(phase)
        if before is not None and before.any():
            (self._settled if (before & now).any() else self._unknown).add(phase)
        self._last[phase] = now

    def message(self) -> str | None:
        """A warning, where the steps of some phase leave open how its environments reset."""
        if not self._unknown - self._settled:
            return None
        return (
            "environments ended, and the recorder was not told how they reset, so recording.episodes() does not know "
            f"where episodes begin: open the recorder with {AUTORESET_WORDS}"
        )
