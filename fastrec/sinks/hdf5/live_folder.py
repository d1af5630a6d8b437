"""Folders that are read while processes write to them.

    live = fastrec.load("run/", live=True)
    for new in live.follow():                # a recording of the passes that came, of any of the processes
        print(new.n_passes, list(new.ranks))

Each file is followed as if it were alone, and files that appear later are taken in at the next look.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator

from fastrec._errors import FastrecError, FastrecWarning, RecordingNotFoundError
from fastrec.recording._recording import Recording
from fastrec.sinks.hdf5.folder import (
    AnyPath,
    ProcessRecording,
    check_can_open_more,
    merge_processes,
    process_of,
    recordings_of,
)
from fastrec.sinks.hdf5.live import LiveRecording, NewPasses, State
from fastrec.sinks.hdf5.merged import shown_recordings
from fastrec.sinks.hdf5.source import HDF5Source


class LiveFolder(LiveRecording):
    """The recordings of several processes, up to the last ``refresh``; they may grow, end, and become more.

    Passes are numbered in order of the processes, as in a loaded folder, so a pass may have a higher number after a
    refresh. ``state`` is "growing" while any process writes, else "killed" where one was killed, else "finished".
    ``follow`` ends when no process writes any more.
    """

    def __init__(self, path: AnyPath) -> None:
        # A generator could be listed only once, and a folder is listed at each look.
        self._pattern: AnyPath = path if isinstance(path, str | os.PathLike) else list(path)
        self._recordings: dict[str, LiveRecording] = {}
        self._told: set[str] = set()
        self._refresh()

    @property
    def state(self) -> State:
        """Whether some process writes, all have finished, or one was killed and none writes any more."""
        return _state_of([recording.state for recording in self._recordings.values()])

    def _refresh(self) -> None:
        processes: list[ProcessRecording] = []
        losses: list[str] = []
        for path in recordings_of(self._pattern):
            try:
                if path in self._recordings:
                    self._recordings[path].refresh()
                elif shown_recordings(path) is None:  # else what it shows is here too
                    self._recordings[path] = LiveRecording(path)
            except FastrecError as error:
                check_can_open_more(error)
                losses.append(str(error))
            recording = self._recordings.get(path)
            if recording is not None and (source := recording.snapshot()).paths() and not source.catalog.origins:
                processes.append(process_of(path, source))
        if not processes:
            raise RecordingNotFoundError(f"nothing that can be read was flushed to {self._pattern!r} yet")
        self._source = merge_processes(processes, losses)
        self._forget_cached()
        self._tell(self._source.losses())

    def _tell(self, losses: list[str]) -> None:
        """Warn of what is new among the losses."""
        for loss in losses:
            if loss not in self._told:
                self._told.add(loss)
                warnings.warn(loss, FastrecWarning, stacklevel=4)

    def _follow(self, poll: float, timeout: float | None) -> Iterator[Recording]:
        new_passes = {path: NewPasses(path, recording.snapshot()) for path, recording in self._recordings.items()}
        passed_over: set[str] = set()
        last_news = time.monotonic()
        while True:
            for path in recordings_of(self._pattern):
                if path not in new_passes and path not in passed_over:
                    if _is_followed(path):
                        new_passes[path] = NewPasses(path, None)
                    elif os.path.exists(path):  # it is finished, so it will stay what it is
                        passed_over.add(path)
            # Asked before the files are read: what a finished recording has is then all there.
            state = _state_of([each.state() for each in new_passes.values()])
            pieces = [(path, piece) for path, each in new_passes.items() if (piece := each.take()) is not None]
            if pieces:
                yield Recording(merge_processes([process_of(path, piece) for path, piece in pieces]))
                last_news = time.monotonic()
            elif state != "growing" or (timeout is not None and time.monotonic() - last_news > timeout):
                return
            else:
                time.sleep(poll)


def _is_followed(path: str) -> bool:
    """Whether a path is that of a recording of one process to which something was flushed, and not damaged."""
    try:
        return shown_recordings(path) is None and not HDF5Source(path).catalog.origins
    except FastrecError:
        return False


def _state_of(states: list[State]) -> State:
    order: tuple[State, ...] = ("growing", "killed", "finished")
    return next((state for state in order if state in states), "finished")
