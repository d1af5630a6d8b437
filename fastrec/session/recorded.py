"""``Recorded``: a module that records itself, in whichever process it is called.

    model = fastrec.Recorded(policy, sink="run/", keep_op="tanh")
    collector = MultiSyncCollector(..., policy=model)    # or a DataLoader's data set, or datasets.map
    ...
    fastrec.load("run/")

Frameworks pickle or fork a model into processes of theirs, where nobody opens a recorder, and which end without a word.
So this module opens its own at its first call in each process, and closes it when the process or the module ends. A
pool kills its workers instead of ending them, and there each call is flushed.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import sys
import warnings
from multiprocessing.util import Finalize
from typing import Any

from torch import nn
from torch.utils.data import get_worker_info

from fastrec._errors import FastrecError, FastrecWarning, OptionError
from fastrec._torch.process import FORKS
from fastrec.session.recorder import Recorder

EXIT_PRIORITY = 20
"""Before the writer of a file flushes what nobody closed."""

POOL_PACKAGES = ("multiprocessing", "multiprocess")
"""``multiprocess`` is the copy of the standard package by which ``datasets`` starts its processes."""


class Recorded(nn.Module):
    """A picklable module that records each call of a model in a folder, with a recorder of its own in each process.

    >>> import torch, fastrec
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh())
    >>> recorded = fastrec.Recorded(model, sink="recorded/", keep_op="tanh")
    >>> out = recorded(torch.ones(2, 4))
    >>> recorded.close()
    >>> fastrec.load("recorded/").stack("1/tanh").shape
    torch.Size([1, 2, 8])

    Arguments:
        model: the module to call. It is ``recorded.model``, and sites are called as without ``Recorded``.
        sink: a folder, such as "run/". Each process writes a file of its own there, which ``fastrec.load("run/")``
            reads together.
        options: those of ``Recorder``. They are pickled with the module, so callables must be importable.

    The file is finished when the process ends, when the module is garbage collected, or by ``close()``. A pool kills
    its workers, so in them each call is flushed, and ``fastrec.recover("run/")`` finishes the files. Raises OptionError
    for a sink that is not a folder; the first call in a process raises what a ``Recorder`` does when it opens.
    """

    def __init__(self, model: nn.Module, *, sink: str | os.PathLike[str], **options: Any) -> None:
        super().__init__()
        # Absolute, and told as a folder: the process that records may be elsewhere, and may be the first to come.
        self._options = {**options, "sink": os.path.join(os.path.abspath(_folder(sink)), "")}
        Recorder(model, **self._options)  # what makes no sense is refused here, and not in another process
        self.model = model
        self._open: _OpenRecorder | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model, and record the call."""
        recorder = self._open
        if recorder is None or recorder.forks != FORKS.count:
            recorder = self._open = _OpenRecorder(Recorder(self.model, **self._options))
            # A weak reference, so that the file is finished when the module is gone.
            recorder.finish_with(self)
        out = self.model(*args, **kwargs)
        if recorder.is_in_pool:
            recorder.recorder.flush()
        return out

    def close(self) -> None:
        """Finish this process's file. The next call begins another one."""
        opened, self._open = self._open, None
        if opened is not None:
            opened.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None}  # a copy opens its own, in its process


class _OpenRecorder:
    """The recorder of this process, closed at the latest when the process ends."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.forks = FORKS.count
        self.is_in_pool = get_worker_info() is None and any(map(_is_daemon, POOL_PACKAGES))
        recorder.__enter__()
        self._is_open = True

    def finish_with(self, module: Recorded) -> None:
        """Close when a module or the process ends."""
        # Processes of multiprocessing end without atexit; elsewhere its Finalize runs when h5py has cleaned up.
        atexit.register(self.close)
        for name in POOL_PACKAGES:
            if f"{name}.util" in sys.modules:
                finalize: type[Finalize] = sys.modules[f"{name}.util"].Finalize
                finalize(module, self.close, exitpriority=EXIT_PRIORITY)

    def close(self) -> None:
        """Finish the file, once and in the process that opened it."""
        if not self._is_open or self.forks != FORKS.count:
            return
        self._is_open = False
        atexit.unregister(self.close)
        try:
            self.recorder.__exit__(None, None, None)
        except FastrecError as error:
            warnings.warn(f"the recording of this process could not be finished: {error}", FastrecWarning, stacklevel=2)


def _folder(sink: Any) -> str:
    if not isinstance(sink, str | os.PathLike) or os.path.splitext(sink)[1] in (".h5", ".hdf5"):
        raise OptionError(
            f"Recorded(sink={sink!r}): give a folder, such as 'run/', because each process that calls the model "
            "writes a file of its own"
        )
    return os.fspath(sink)


def _is_daemon(package: str) -> bool:
    """Whether a package for processes started this one as a worker that is killed in the end."""
    module = multiprocessing if package == "multiprocessing" else sys.modules.get(package)
    return module is not None and bool(module.current_process().daemon)
