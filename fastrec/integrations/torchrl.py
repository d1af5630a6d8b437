"""Steps and phases of a TorchRL collector, and recorded values in the shape of its batches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from fastrec._errors import OptionError, RaggedError, UnsupportedModelError
from fastrec.integrations._extras import check_autoreset, missing
from fastrec.recording._recording import Recording
from fastrec.session.recorder import Recorder

try:
    from tensordict import TensorDictBase
    from torchrl.collectors import Collector
    from torchrl.envs import EnvBase
except ImportError as error:
    raise missing("torchrl", extra="torchrl") from error


def collect(collector: Collector, rec: Recorder) -> Iterator[TensorDictBase]:
    """Iterate over a collector's batches, while the recorder gets a step for each frame.

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

    The passes of the collector are of the phase "rollout", with steps whose columns are ``reward``, ``terminated``
    and ``truncated``. What runs between two batches, such as the updates, keeps the phase it has there.
    Make the collector before the recorder is opened: its construction calls the policy once, which is no frame.
    Random frames (``init_random_frames``) are steps without a pass.

    Arguments:
        collector: a collector that runs its policy and its environments in this thread.
        rec: an open recorder of its policy with ``autoreset="same_step"``, which is how these environments reset.

    Raises UnsupportedModelError for collectors that run in other processes or threads.
    """
    if not isinstance(collector, Collector):
        raise UnsupportedModelError(
            f"{type(collector).__name__} does not run its environments in this thread, so its steps can't be marked; "
            "use a Collector, or record its policy without steps"
        )
    check_autoreset(rec, "same_step", "TorchRL's environments")
    if collector.reset_at_each_iter:
        raise OptionError(
            "reset_at_each_iter=True cuts episodes where no step tells of it; make the collector without it"
        )
    batches = iter(collector)
    while True:
        with rec.phase("rollout"), _marking(collector.env, rec):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def aligned(recording: Recording, key: str, batch: TensorDictBase) -> Tensor:
    """The values of a key in the shape of a batch, [*batch.shape, *feature]: time is the batch's last dimension.

    Arguments:
        recording: the rollout passes of this batch, such as ``rec.pop().select(phase="rollout")``.
        key: an address, a site or a label, as in ``recording.stack(key)``.
        batch: a batch of the collector, with one pass per time step.

    Raises RaggedError where the passes are not those of the batch.
    """
    *envs, time = batch.shape
    values = recording.stack(key)
    if values.shape[: batch.ndim] != (time, *envs):
        raise RaggedError(
            f"{key!r} has values of shape {tuple(values.shape)}, and a batch of shape {tuple(batch.shape)} needs "
            f"{(time, *envs)} in front; select the rollout passes of this batch, for instance by taking them with "
            "rec.pop() after each one"
        )
    return values.movedim(0, len(envs))


@contextmanager
def _marking(env: EnvBase, rec: Recorder) -> Iterator[None]:
    """Mark a step after each step of the environment, whose method is the only place that sees them one by one."""
    plain = env.step_and_maybe_reset

    def step_and_maybe_reset(tensordict: TensorDictBase) -> tuple[TensorDictBase, TensorDictBase]:
        stepped, following = plain(tensordict)
        after = stepped["next"]
        terminated = _per_env(after["terminated"])
        truncated = _per_env(after["done"]) & ~terminated
        rec.step(reward=_per_env(after["reward"]), terminated=terminated, truncated=truncated)
        return stepped, following

    vars(env)["step_and_maybe_reset"] = step_and_maybe_reset
    try:
        yield
    finally:
        del vars(env)["step_and_maybe_reset"]


def _per_env(value: Tensor) -> Tensor:
    """One value per environment from [*envs, 1]; a single one for an environment without dimensions."""
    value = value.squeeze(-1)
    return value.flatten() if value.ndim else value
