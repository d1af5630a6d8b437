"""Steps, episodes and phases of a Stable-Baselines3 training run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from fastrec._errors import OptionError
from fastrec._optional import require
from fastrec.integrations._autoreset import check_autoreset
from fastrec.session.recorder import Recorder
from fastrec.sinks import StatisticsSink
from fastrec.sinks.statistics.window import LOGGED

require("stable_baselines3.common.callbacks", extra="sb3", what=__name__)

from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ProgressBarCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm


class RecordCallback(BaseCallback):
    """A callback that marks the recorder's steps and phases while ``learn`` runs, on policy or off policy.

    >>> import gymnasium, fastrec
    >>> from stable_baselines3 import PPO
    >>> from stable_baselines3.common.env_util import make_vec_env
    >>> from fastrec.integrations.sb3 import RecordCallback
    >>> model = PPO("MlpPolicy", make_vec_env("CartPole-v1", n_envs=2), n_steps=16, batch_size=32, device="cpu")
    >>> with fastrec.Recorder(model.policy, keep_module="value_net", autoreset="same_step") as rec:
    ...     model = model.learn(32, callback=RecordCallback(rec))
    >>> rec.recording.select(phase="rollout").stack("value_net").shape
    torch.Size([16, 2, 1])

    Phases:
        rollout: the passes that choose actions. The only phase with steps, one per ``env.step``, with the columns
            ``reward`` (as the environment gives it, before the algorithm adds the value of a truncated episode's last
            observation), ``terminated`` and ``truncated``.
        bootstrap: the passes that value the last observations of truncated episodes, and those after a rollout.
        eval: the passes of other callbacks after a step, such as EvalCallback's.
        train: the updates.

    An off-policy algorithm explores without asking the policy (before ``learning_starts``, and DQN with probability
    epsilon). Such a step is marked like any other, and no pass belongs to it.

    In a list of callbacks this one has to be the last, because its turn is how it knows that the others are done. It
    does not change what is learned. Stable-Baselines3 doesn't tell its callbacks about exceptions: if you catch one
    inside the recorder's block, name what follows with ``rec.phase(...)``.

    Arguments:
        rec: an open recorder with ``autoreset="same_step"``, which is how these environments reset.

    Raises OptionError when training starts, if the recorder or the order of the callbacks doesn't fit.
    """

    def __init__(self, rec: Recorder) -> None:
        super().__init__()
        self._rec = rec
        self._phase: AbstractContextManager[None] | None = None
        self._buffer_rows = -1

    def _init_callback(self) -> None:
        check_autoreset(self._rec, "same_step", "the environments of Stable-Baselines3")

    def _on_training_start(self) -> None:
        callbacks = [c for c in _leaves(self.locals["callback"]) if not isinstance(c, ProgressBarCallback)]
        if callbacks[-1] is not self:
            raise OptionError(
                f"{type(callbacks[-1]).__name__} comes after RecordCallback, so its passes would count as the "
                "algorithm's own; put RecordCallback last in the list of callbacks"
            )
        self._turn_to("train")

    def _on_rollout_start(self) -> None:
        self._buffer_rows = -1
        self._turn_to(self._phase_of_pass)

    def update_locals(self, locals_: dict[str, Any]) -> None:
        """Called by the algorithm after ``env.step``, before the first of its callbacks."""
        super().update_locals(locals_)
        self._turn_to("eval")

    def _on_step(self) -> bool:
        dones = np.asarray(self.locals["dones"], dtype=bool)
        cut = np.array([info.get("TimeLimit.truncated", False) for info in self.locals["infos"]], dtype=bool)
        with self._rec.phase("rollout"):
            self._rec.step(reward=self.locals["rewards"], terminated=dones & ~cut, truncated=dones & cut)
        if isinstance(self.model, OnPolicyAlgorithm):
            self._buffer_rows = self.model.rollout_buffer.pos
        self._turn_to(self._phase_of_pass)
        return True

    def _on_rollout_end(self) -> None:
        self._turn_to("train")

    def _on_training_end(self) -> None:
        self._turn_to(None)

    def _phase_of_pass(self, entry: str) -> str:
        """The phase of a pass between two steps."""
        if not isinstance(self.model, OnPolicyAlgorithm):
            return "rollout"
        # A step goes into the buffer after its bootstrap passes, and before the pass that chooses the next action.
        buffer = self.model.rollout_buffer
        return "bootstrap" if buffer.full or buffer.pos == self._buffer_rows else "rollout"

    def _turn_to(self, phase: str | Callable[[str], str] | None) -> None:
        if self._phase is not None:
            self._phase.__exit__(None, None, None)
            self._phase = None
        if phase is not None:
            self._phase = self._rec.phase(phase)
            self._phase.__enter__()


class StatisticsCallback(BaseCallback):
    """A callback that hands what a statistics sink measured to the algorithm's own logger, once an update.

    >>> import gymnasium, fastrec
    >>> from stable_baselines3 import PPO
    >>> from stable_baselines3.common.env_util import make_vec_env
    >>> from stable_baselines3.common.logger import configure
    >>> from fastrec.integrations.sb3 import StatisticsCallback
    >>> model = PPO("MlpPolicy", make_vec_env("CartPole-v1", n_envs=2), n_steps=16, batch_size=32, device="cpu")
    >>> model.set_logger(configure("logs", ["csv"]))
    >>> sink = fastrec.sinks.StatisticsSink()
    >>> with fastrec.Recorder(model.policy, keep_op="tanh", sink=sink):
    ...     model = model.learn(32, callback=StatisticsCallback(sink))
    >>> model.logger.close()
    >>> with open("logs/progress.csv") as file:
    ...     "saturated/mlp_extractor.policy_net.1/tanh" in file.readline()
    True

    The logger writes them wherever it was told to: stdout, TensorBoard, CSV. With RecordCallback in one list, it comes
    before that one.

    Arguments:
        sink: the sink of an open recorder.
        measures: which ones; ``fastrec.report.MEASURES`` has all.
    """

    def __init__(self, sink: StatisticsSink, measures: Sequence[str] = LOGGED) -> None:
        super().__init__()
        self._window = sink.window(measures)

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        for name, value in self._window.take().items():
            self.logger.record(name, value, exclude="stdout")


def _leaves(callback: BaseCallback) -> Iterator[BaseCallback]:
    if isinstance(callback, CallbackList):
        for child in callback.callbacks:
            yield from _leaves(child)
    else:
        yield callback
