"""A training run of Stable-Baselines3 that is the same each time, to be killed, and what it has recorded until then."""

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from fastrec import Recorder, Recording
from fastrec.integrations.sb3 import RecordCallback
from fastrec.recording._source import Source
from fastrec.sinks import HDF5Sink, RAMSink

ENVS, STEPS, ROLLOUTS = 3, 24, 4
FIELDS = ("pass_index", "step", "count", "grad", "outcome", "entry_pass")


def learn(sink: HDF5Sink | RAMSink, watch: BaseCallback | None = None) -> Recorder:
    """Rollouts and updates, layers of which are kept, with a callback that watches each step; left open."""
    env = make_vec_env("CartPole-v1", n_envs=ENVS, seed=0, env_kwargs={"max_episode_steps": 13})
    small = {"net_arch": [16, 16]}
    model = PPO("MlpPolicy", env, n_steps=STEPS, batch_size=24, n_epochs=1, seed=0, device="cpu", policy_kwargs=small)
    rec = Recorder(model.policy, keep_op=["linear", "tanh"], autoreset="same_step", sink=sink).__enter__()
    callbacks: list[BaseCallback] = [] if watch is None else [watch]
    model.learn(ENVS * STEPS * ROLLOUTS, callback=[*callbacks, RecordCallback(rec)])
    return rec


class Reference:
    """What the whole run records, in RAM."""

    def __init__(self) -> None:
        rec = learn(RAMSink())
        rec.__exit__(None, None, None)
        self._recording = rec.recording
        self._facts = _facts(self._recording._source)

    def check(self, recording: Recording, flushed: int) -> None:
        """All that is there is the beginning of the run, bit for bit, and the steps before what was flushed are."""
        source, expected = recording._source, self._recording._source
        passes = source.passes()
        whole = expected.passes()[: len(passes)]
        for name in FIELDS:
            assert passes[name].tolist() == whole[name].tolist(), name
        assert len(source.records()) == whole["count"].sum()
        for recorded, whole_facts in zip(_facts(source), self._facts, strict=True):
            assert recorded == whole_facts[: len(recorded)]
        steps, all_steps = recording.steps, self._recording.steps
        for name in all_steps if len(steps) else ():
            assert steps[name].tolist() == all_steps[name][: len(steps)].tolist()
        rollout = expected.catalog.phases.items.index("rollout")
        safe = whole[(whole["pass_index"] <= flushed) & (whole["phase"] == rollout)]
        assert len(steps) >= safe["step"].max(initial=0)


def _facts(source: Source) -> tuple[list[str], list[tuple[str, str]], bytes]:
    """The phases of passes, where records were kept, and their bits."""
    catalog, records = source.catalog, source.records()
    metas, rows = records["meta"].astype("i8"), records["row"]
    phases = [catalog.phases[number] for number in source.passes()["phase"].tolist()]
    sites = [(catalog.site_of(number).name, catalog.metas[number].label) for number in metas.tolist()]
    pieces = source.values(metas, rows, "activation")
    return phases, sites, b"".join(piece.reshape(-1).view(torch.uint8).numpy().tobytes() for piece in pieces)
