"""Statistics of values in TensorBoard, beside the losses."""

from __future__ import annotations

from collections.abc import Sequence

from fastrec._optional import require
from fastrec.sinks import StatisticsSink
from fastrec.sinks.statistics.window import LOGGED

require("torch.utils.tensorboard", extra="tensorboard", what=__name__)

from torch.utils.tensorboard import SummaryWriter  # noqa: E402


class StatisticsLogger:
    """Writes what a statistics sink measured since it was last called.

    >>> import torch, fastrec
    >>> from torch.utils.tensorboard import SummaryWriter
    >>> from fastrec.integrations.tensorboard import StatisticsLogger
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU())
    >>> sink = fastrec.sinks.StatisticsSink()
    >>> with fastrec.Recorder(model, keep_op="relu", sink=sink), SummaryWriter("runs") as writer:
    ...     log_statistics = StatisticsLogger(sink, writer)
    ...     for step in range(100):
    ...         out = model(torch.randn(16, 4))
    ...         if step % 10 == 9:
    ...             log_statistics(step)

    The numbers have the tags "measure/site", such as "dead_units/1/relu", so that TensorBoard shows one measure of all
    sites side by side.

    Arguments:
        sink: the sink of an open recorder.
        writer: where the numbers go.
        measures: which ones; ``fastrec.report.MEASURES`` has all.
    """

    def __init__(self, sink: StatisticsSink, writer: SummaryWriter, measures: Sequence[str] = LOGGED) -> None:
        self._window = sink.window(measures)
        self._writer = writer

    def __call__(self, step: int) -> None:
        """Write the numbers of the passes that ended since it was last called."""
        for tag, value in self._window.take().items():
            self._writer.add_scalar(tag, value, step)
