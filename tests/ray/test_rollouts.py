"""PPO of RLlib on CartPole with two runners of four environments: what they record, also when one of them is killed."""

import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fastrec
from fastrec import Recording

ray = pytest.importorskip("ray")

from ray.rllib.algorithms.ppo import PPOConfig  # noqa: E402

from fastrec.integrations.ray import RecordRollouts  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    root = str(Path(__file__).parents[2])
    ray.init(num_cpus=4, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": root}}, log_to_driver=False)
    yield
    ray.shutdown()


def algorithm(sink: Path, lr: float = 1e-3, **options: Any) -> Any:
    config = (
        PPOConfig()
        .environment("CartPole-v1")
        .env_runners(num_env_runners=2, num_envs_per_env_runner=4, rollout_fragment_length=50)
        .fault_tolerance(restart_failed_env_runners=True)
        .training(lr=lr, train_batch_size_per_learner=400, minibatch_size=100, num_epochs=1)
        .callbacks(partial(RecordRollouts, sink=f"{sink}/", **options))
    )
    return config.build_algo()


def pids(algo: Any) -> list[int]:
    pids: list[int] = algo.env_runner_group.foreach_env_runner(lambda runner: os.getpid(), local_env_runner=False)
    return pids


def check(part: Recording) -> None:
    """What holds in the file of each runner."""
    assert part.n_passes == len(part.steps)
    values = part.stack("encoder.actor_encoder.net.mlp.1", by="step")
    assert values.shape == (len(part.steps), 4, 256) and bool((values.abs() <= 1).all())
    for episode in part.episodes():
        assert len(episode) <= 500


def test_runners_record_each_step_also_after_one_was_killed(tmp_path: Path) -> None:
    key = "encoder.actor_encoder.net.mlp.1"
    algo = algorithm(tmp_path / "run", keep_module=key)
    try:
        algo.train()
        live = fastrec.load(tmp_path / "run", live=True)
        assert len(live.processes) == 2 and live.n_passes >= 100
        os.kill(pids(algo)[0], signal.SIGKILL)
        for _ in range(20):
            algo.train()
            time.sleep(0.5)
            if len(fastrec.load(tmp_path / "run", live=True).processes) == 3:
                break
        algo.train()
    finally:
        algo.stop()
    recording = fastrec.load(tmp_path / "run", live=True)
    assert len(recording.processes) == 3
    assert {process.role for process in recording.processes} == {"rollout"}
    for path in sorted((tmp_path / "run").glob("*.h5")):
        part = fastrec.load(path, live=True)
        check(part)
        assert len(np.unique(part.steps["runner"])) == 1
        # New weights arrive between samples, so the number never falls.
        assert (np.diff(part.steps["weights"]) >= 0).all()
    assert len(recording.select(role="rollout").episodes()) > 10


def test_an_error_of_the_recording_stops_no_runner(tmp_path: Path) -> None:
    def refuse(ctx: Any) -> bool:
        raise ZeroDivisionError

    algo = algorithm(tmp_path / "run", keep_op=refuse)
    try:
        before = pids(algo)
        result = algo.train()
        assert result["env_runners"]["num_env_steps_sampled"] >= 400
        assert pids(algo) == before
    finally:
        algo.stop()


def test_values_are_those_of_the_module(tmp_path: Path) -> None:
    hidden = "encoder.actor_encoder.net.mlp.3"
    algo = algorithm(tmp_path / "run", lr=0.0, keep_module=[hidden, "pi"])
    try:
        algo.train()
        module = algo.get_module()
    finally:
        algo.stop()
    for path in (tmp_path / "run").glob("*.h5"):
        part = fastrec.load(path, live=True)
        with torch.no_grad():
            torch.testing.assert_close(part.stack("pi"), module.pi(part.stack(hidden)))
