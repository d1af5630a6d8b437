"""Gymnasium environments that mark the recorder's steps."""

from __future__ import annotations

from typing import Any

from fastrec._optional import require
from fastrec.integrations._autoreset import check_autoreset
from fastrec.session.recorder import Recorder

require("gymnasium", extra="gym", what=__name__)

import gymnasium
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper

_RECORDER_MODES = {
    AutoresetMode.NEXT_STEP: "next_step",
    AutoresetMode.SAME_STEP: "same_step",
    AutoresetMode.DISABLED: "same_step",  # the loop resets between two steps, so every step counts
}


# Without its parameters, which the class does not have before Gymnasium 1.3.
class RecordSteps(VectorWrapper):
    """Vectorised environments that mark a step of the recorder after each of their own.

    >>> import gymnasium, torch, fastrec
    >>> from fastrec.integrations.gymnasium import RecordSteps
    >>> policy = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    >>> with fastrec.Recorder(policy, keep_op="tanh", autoreset="next_step") as rec:
    ...     envs = RecordSteps(gymnasium.make_vec("CartPole-v1", num_envs=3), rec)
    ...     obs, _ = envs.reset(seed=0)
    ...     for _ in range(5):
    ...         with torch.no_grad():
    ...             actions = policy(torch.as_tensor(obs)).argmax(-1)
    ...         obs, reward, terminated, truncated, info = envs.step(actions.numpy())
    >>> rec.recording.stack("1/tanh").shape
    torch.Size([5, 3, 8])

    The columns of a step are ``reward``, ``terminated`` and ``truncated``, with one value per environment.

    Arguments:
        env: vectorised environments.
        rec: a recorder whose ``autoreset=`` says how these environments reset.

    Raises OptionError if ``autoreset=`` differs from ``env.metadata["autoreset_mode"]``.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], rec: Recorder) -> None:
        super().__init__(env)
        mode = env.metadata.get("autoreset_mode")
        # Environments that Gymnasium did not make may not say.
        is_free = mode is None or (rec.options.autoreset is None and AutoresetMode(mode) is AutoresetMode.DISABLED)
        if not is_free:
            check_autoreset(rec, _RECORDER_MODES[AutoresetMode(mode)], "these environments")
        self._rec = rec

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step all environments and mark the step."""
        obs, reward, terminated, truncated, info = self.env.step(actions)
        self._rec.step(reward=reward, terminated=terminated, truncated=truncated)
        return obs, reward, terminated, truncated, info


class RecordEnvSteps(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A single environment that marks a step of the recorder after each of its own.

    >>> import gymnasium, torch, fastrec
    >>> from fastrec.integrations.gymnasium import RecordEnvSteps
    >>> policy = torch.nn.Linear(4, 2)
    >>> with fastrec.Recorder(policy, keep_op="linear") as rec:
    ...     env = RecordEnvSteps(gymnasium.make("CartPole-v1"), rec)
    ...     obs, _ = env.reset(seed=0)
    ...     done = False
    ...     while not done:
    ...         action = int(policy(torch.as_tensor(obs)).argmax())
    ...         obs, reward, terminated, truncated, info = env.step(action)
    ...         done = terminated or truncated
    >>> [episode.length for episode in rec.recording.episodes()] == [len(rec.recording)]
    True

    Arguments:
        env: an environment that the loop resets.
        rec: a recorder without ``autoreset=``.

    Raises OptionError if the recorder has an ``autoreset=``.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], rec: Recorder) -> None:
        super().__init__(env)
        check_autoreset(rec, None, "this environment")
        self._rec = rec

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step the environment and mark the step."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        self._rec.step(reward=reward, terminated=terminated, truncated=truncated)
        return obs, reward, terminated, truncated, info
