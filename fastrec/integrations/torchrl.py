"""Steps and phases of a TorchRL collector, and recorded values in the shape of its batches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from fastrec._errors import OptionError, RaggedError, UnsupportedModelError
from fastrec._optional import require
from fastrec.integrations._autoreset import check_autoreset
from fastrec.recording._recording import Recording
from fastrec.session.recorder import Recorder

require("tensordict", extra="torchrl", what=__name__)
require("torchrl", extra="torchrl", what=__name__)

from tensordict import TensorDictBase
from torchrl.collectors import Collector
from torchrl.envs import EnvBase


def collect(collector: Collector, rec: Recorder) -> Iterator[TensorDictBase]:
    """Iterate over a collector's batches, and mark a step of the recorder for each frame.

    >>> import torch, fastrec
    >>> from tensordict.nn import TensorDictModule
    >>> from torchrl.collectors import Collector
    >>> from torchrl.envs import GymEnv, SerialEnv
    >>> from fastrec.integrations.torchrl import aligned, collect
    >>> net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    >>> policy = TensorDictModule(net, in_keys=["observation"], out_keys=["action"])
    >>> envs = SerialEnv(2, lambda: GymEnv("Pendulum-v1"))
    >>> collector = Collector(envs, policy, frames_per_batch=10, total_frames=20, auto_register_policy_transforms=False)
    >>> with fastrec.Recorder(policy, keep_op="tanh", autoreset="same_step") as rec:
    ...     for batch in collect(collector, rec):
    ...         batch["hidden"] = aligned(rec.pop().select(phase="rollout"), "module.1/tanh", batch)
    >>> batch["observation"].shape, batch["hidden"].shape
    (torch.Size([2, 5, 3]), torch.Size([2, 5, 8]))
    >>> collector.shutdown()

    The collector's passes belong to the phase "rollout", whose steps have the columns ``reward``, ``terminated`` and
    ``truncated``. What runs between two batches, such as the updates, is in whatever phase you name there.
    Make the collector before you open the recorder, because its construction calls the policy once, for no frame.
    Random frames (``init_random_frames``) are steps without a pass.

    Arguments:
        collector: a collector that runs its policy and its environments in this thread.
        rec: an open recorder of its policy with ``autoreset="same_step"``, which is how these environments reset.

    Raises UnsupportedModelError for a collector that runs in other processes or threads, and OptionError for
    ``reset_at_each_iter=True``.
    """
    if not isinstance(collector, Collector):
        raise UnsupportedModelError(
            f"{type(collector).__name__} does not run its environments in this thread, so its steps can't be marked; "
            "use a Collector, or record the policy without steps"
        )
    check_autoreset(rec, "same_step", "TorchRL's environments")
    if collector.reset_at_each_iter:
        raise OptionError(
            "reset_at_each_iter=True cuts episodes short without a step that says so; make the collector without it"
        )
    batches = iter(collector)
    while True:
        with rec.phase("rollout"), _marking(collector.env, rec):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def aligned(recording: Recording, key: str, batch: TensorDictBase) -> Tensor:
    """The values of a key in the shape of a batch, ``[*batch.shape, *feature]``: its last dimension is time.

    Arguments:
        recording: the rollout passes of this batch, such as ``rec.pop().select(phase="rollout")``.
        key: an address, a site or a label, as in ``recording.stack(key)``.
        batch: a batch of the collector, with one pass per time step.

    Raises RaggedError if the passes are not those of the batch.
    """
    *envs, time = batch.shape
    values = recording.stack(key)
    if values.shape[: batch.ndim] != (time, *envs):
        raise RaggedError(
            f"{key!r} has values of shape {tuple(values.shape)}, but for a batch of shape {tuple(batch.shape)} they "
            f"have to begin with {(time, *envs)}; select the rollout passes of this batch, for instance by calling "
            "rec.pop() after each batch"
        )
    return values.movedim(0, len(envs))


@contextmanager
def _marking(env: EnvBase, rec: Recorder) -> Iterator[None]:
    """Mark a step after each step of the environment."""
    original = env.step_and_maybe_reset

    def step_and_maybe_reset(tensordict: TensorDictBase) -> tuple[TensorDictBase, TensorDictBase]:
        stepped, next_root = original(tensordict)
        outcome = stepped["next"]
        terminated = _per_env(outcome["terminated"])
        truncated = _per_env(outcome["done"]) & ~terminated
        rec.step(reward=_per_env(outcome["reward"]), terminated=terminated, truncated=truncated)
        return stepped, next_root

    # A collector hands out whole batches; this method is the only place where its steps pass one by one.
    vars(env)["step_and_maybe_reset"] = step_and_maybe_reset
    try:
        yield
    finally:
        del vars(env)["step_and_maybe_reset"]


def _per_env(value: Tensor) -> Tensor:
    """One value per environment from [*envs, 1]; a single one for an environment without dimensions."""
    value = value.squeeze(-1)
    return value.flatten() if value.ndim else value
