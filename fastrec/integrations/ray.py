"""Ray: the rollouts of RLlib's runners in one folder, and recorded values as columns of Ray Data.

    config.callbacks(partial(RecordRollouts, sink="run/", keep_op="tanh"))
    rows.map_batches(RecordColumns, fn_constructor_args=(model, "x", {"hidden": "1/tanh"}), concurrency=2)

Ray starts the processes, restarts those that die, and moves the data. Each process records where its model runs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from fastrec._errors import FastrecError, OptionError, RaggedError
from fastrec._optional import require
from fastrec.predicates import module
from fastrec.recording._arrays import numpy_of
from fastrec.session.recorder import Recorder
from fastrec.sinks import HDF5Sink

require("ray", extra="ray", what=__name__)
require("ray.rllib", extra="ray", what=__name__)

from ray.rllib.callbacks.callbacks import RLlibCallback

LOGGER = logging.getLogger(__name__)

FORWARD_METHODS = ("forward_exploration", "forward_inference")
"""What a runner calls to choose actions. They call parts of the RLModule, never the module itself."""


class RecordRollouts(RLlibCallback):  # type: ignore[misc]
    """An RLlib callback that records what the runners' modules compute, each runner in a file of its own.

        from functools import partial
        config = (
            PPOConfig()
            .environment("CartPole-v1")
            .env_runners(num_env_runners=2, num_envs_per_env_runner=4)
            .callbacks(partial(RecordRollouts, sink="run/", keep_op="tanh"))
        )
        ...
        fastrec.load("run/", live=True).episodes()

    A pass is one choice of actions for all environments of a runner, and a step is one step of these environments, with
    the columns ``reward``, ``terminated``, ``truncated``, ``runner`` (RLlib's index of the worker) and ``weights`` (the
    number of the weights that chose). A runner that is restarted writes another file. The files are flushed after each
    sample, so the driver can read them while RLlib trains.

    An error of the recording never reaches RLlib, which would restart the runner: it is logged at once and when the
    runner stops, and the runner goes on without recording.

    Arguments:
        sink: a folder that all runners can write to, such as "run/".
        options: those of ``Recorder``. The model is the runner's RLModule.

    For algorithms with one agent on RLlib's new API stack.
    """

    def __init__(self, sink: str, **options: Any) -> None:
        super().__init__()
        self._sink = sink
        self._options = options
        self._recorder: _RunnerRecorder | None = None

    def on_episode_created(self, *, env_runner: Any, **kwargs: Any) -> None:
        """Open the recorder: earlier than here the runner may have no module."""
        if self._recorder is None:
            self._recorder = _RunnerRecorder(env_runner, self._sink, self._options)

    def on_sample_end(self, **kwargs: Any) -> None:
        """Write to the file what was recorded."""
        if self._recorder is not None:
            self._recorder.flush()


class _RunnerRecorder:
    """The recorder of one runner, around its module and its environments."""

    def __init__(self, runner: Any, sink: str, options: Mapping[str, Any]) -> None:
        self._runner = runner
        self._rec: Recorder | None = None
        self._error: Exception | None = None
        self._guard(partial(self._open, sink, options))
        for name in FORWARD_METHODS:
            # On the object, because RLlib calls these methods and not the module, which hooks would see.
            vars(runner.module)[name] = self._in_region(name, getattr(runner.module, name))
        environments = vars(runner.env)
        environments["step"] = self._marking(runner.env.step)
        environments["close"] = self._closing(runner.env.close)

    def flush(self) -> None:
        """Write to the file what was recorded."""
        if self._rec is not None:
            self._guard(self._rec.flush)

    def _open(self, sink: str, options: Mapping[str, Any]) -> None:
        role = "evaluation" if self._runner.config.in_evaluation else "rollout"
        # RLlib resets an environment in the step after the last one of an episode.
        options = {"autoreset": "next_step", **options, "sink": HDF5Sink(sink, role=role)}
        self._rec = Recorder(self._runner.module, **options).start()

    def _in_region(self, name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(*args: Any, **kwargs: Any) -> Any:
            if self._rec is not None:
                try:
                    with self._rec.region(name):
                        return forward(*args, **kwargs)
                except (FastrecError, OSError) as error:
                    self._fail(error)
            return forward(*args, **kwargs)

        return recorded

    def _marking(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def marked(actions: Any) -> Any:
            results = step(actions)
            _, reward, terminated, truncated, _ = results
            columns = {
                "reward": np.asarray(reward),
                "terminated": np.asarray(terminated),
                "truncated": np.asarray(truncated),
                "runner": self._runner.worker_index,
                "weights": self._runner._weights_seq_no,
            }
            if self._rec is not None:
                self._guard(partial(self._rec.step, **columns))
            return results

        return marked

    def _closing(self, close: Callable[..., Any]) -> Callable[..., Any]:
        def closed(*args: Any, **kwargs: Any) -> Any:
            rec, self._rec = self._rec, None
            if rec is not None:
                try:
                    rec.stop()
                except (FastrecError, OSError) as error:
                    self._error = error
            if self._error is not None:
                LOGGER.error("runner %s was not recorded to its end: %s", self._runner.worker_index, self._error)
            return close(*args, **kwargs)

        return closed

    def _guard(self, action: Callable[[], object]) -> None:
        """Do something for the recording; an error ends the recording, and nothing else."""
        try:
            action()
        except (FastrecError, OSError) as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        rec, self._rec, self._error = self._rec, None, error
        LOGGER.error("runner %s goes on without recording: %s", self._runner.worker_index, error)
        if rec is not None:
            try:
                rec.__exit__(type(error), error, error.__traceback__)
            except (FastrecError, OSError) as also:
                LOGGER.error("the file of runner %s could not be finished: %s", self._runner.worker_index, also)


class RecordColumns:
    """A class for ``map_batches`` of Ray Data that adds values of a model to the rows, as columns.

        rows = ray.data.read_parquet("images/")
        rows = rows.map_batches(
            RecordColumns, fn_constructor_args=(model, "image", {"hidden": "layer4"}), concurrency=2, batch_size=64
        )
        rows.write_parquet("hidden/")

    >>> import numpy as np, torch
    >>> from fastrec.integrations.ray import RecordColumns
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh())
    >>> record = RecordColumns(model, "x", {"hidden": "1"})
    >>> {name: column.shape for name, column in record({"x": np.ones((5, 4), np.float32)}).items()}
    {'x': (5, 4), 'hidden': (5, 8)}

    Arguments:
        model: a module, which is pickled to each actor and runs in ``eval`` mode, without gradients.
        inputs: the column that the model takes, or a list of them, one for each argument.
        columns: for each new column a key, as ``recording.stack`` takes it. An address of a module is kept as it is;
            for other keys give ``keep_op`` or ``keep_module``.
        device: where the model runs, such as "cuda"; None leaves it where it is.
        options: those of ``Recorder``.

    Raises OptionError for columns that are no dict of names, and RaggedError for a value that has not one row for each
    row of the batch.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: str | list[str],
        columns: Mapping[str, str],
        *,
        device: str | torch.device | None = None,
        **options: Any,
    ) -> None:
        names: Any = columns
        if not isinstance(names, Mapping) or not names:
            raise OptionError(f"RecordColumns(columns={columns!r}): give a dict name -> key, such as {{'hidden': '1'}}")
        self._model = model.eval() if device is None else model.eval().to(device)
        self._device = device
        self._inputs = [inputs] if isinstance(inputs, str) else list(inputs)
        self._columns = dict(columns)
        if "keep_op" not in options and "keep_module" not in options:
            options["keep_module"] = module(*self._columns.values())
        self._rec = Recorder(self._model, **options).start()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch, with the new columns."""
        with torch.no_grad():
            self._rec.log(tuple(torch.as_tensor(batch[name], device=self._device) for name in self._inputs))
        recording = self._rec.pop()
        n_rows = len(batch[self._inputs[0]])
        return {**batch, **{name: self._rows(recording, key, n_rows) for name, key in self._columns.items()}}

    def _rows(self, recording: Any, key: str, n_rows: int) -> Any:
        values = recording.stack(key)
        if len(values) != 1 or values.ndim < 2 or values.shape[1] != n_rows:
            raise RaggedError(
                f"{key!r} gave values of shape {tuple(values.shape)} for a batch of {n_rows} rows; a column needs one "
                f"value of shape [{n_rows}, ...] for each batch"
            )
        return numpy_of(values[0])
