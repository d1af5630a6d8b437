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

        run = wandb.init(project="ppo")
        sink = fastrec.sinks.StatisticsSink()
        with fastrec.Recorder(policy, keep_op="relu", sink=sink):
            log_statistics = StatisticsLogger(sink, run)
            for update in range(1000):
                train_once()
                log_statistics(update)

    The numbers have the names "measure/site", such as "dead_units/1/relu", which makes a section of each measure.

    Arguments:
        sink: the sink of an open recorder.
        run: what ``wandb.init`` returned.
        measures: which ones; ``fastrec.statistics.MEASURES`` has all.
    """

    def __init__(self, sink: StatisticsSink, run: Any, measures: Sequence[str] = LOGGED) -> None:
        self._window = sink.window(measures)
        self._run = run

    def __call__(self, step: int | None = None) -> None:
        """Log the numbers of the passes that ended since it was last called; without a step with what comes next."""
        self._run.log(self._window.take(), step=step)
