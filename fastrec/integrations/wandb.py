"""Statistics of values in Weights & Biases, beside the losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastrec._optional import require
from fastrec.sinks import StatisticsSink
from fastrec.sinks.statistics.window import LOGGED

require("wandb", extra="wandb", what=__name__)


class StatisticsLogger:
    """Logs what a statistics sink measured since it was last called.

    >>> import torch, wandb, fastrec
    >>> from fastrec.integrations.wandb import StatisticsLogger
    >>> run = wandb.init(project="ppo", mode="offline", settings=wandb.Settings(silent=True))
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU())
    >>> sink = fastrec.sinks.StatisticsSink()
    >>> with fastrec.Recorder(model, keep_op="relu", sink=sink):
    ...     log_statistics = StatisticsLogger(sink, run)
    ...     for step in range(100):
    ...         out = model(torch.randn(16, 4))
    ...         if step % 10 == 9:
    ...             log_statistics(step)
    >>> run.finish()

    The numbers have the names "measure/site", such as "dead_units/1/relu", which makes a section of each measure.

    Arguments:
        sink: the sink of an open recorder.
        run: what ``wandb.init`` returned.
        measures: which ones; ``fastrec.report.MEASURES`` has all.
    """

    def __init__(self, sink: StatisticsSink, run: Any, measures: Sequence[str] = LOGGED) -> None:
        self._window = sink.window(measures)
        self._run = run

    def __call__(self, step: int | None = None) -> None:
        """Log the numbers of the passes that ended since it was last called; without a step with what comes next."""
        self._run.log(self._window.take(), step=step)
