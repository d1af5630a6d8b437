"""Loggers get what a statistics sink measured since they last asked, and write it as they write everything."""

import csv
from pathlib import Path

import pytest
import torch
from torch import nn

from fastrec import Recorder
from fastrec.sinks import StatisticsSink


def policy() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU())


def test_tensorboard_shows_the_measures(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    from fastrec.integrations.tensorboard import StatisticsLogger

    model, sink, expected = policy(), StatisticsSink(), []
    with Recorder(model, keep_op="relu", sink=sink), SummaryWriter(str(tmp_path)) as writer:
        log_statistics = StatisticsLogger(sink, writer, ["zeros"])
        for step in range(30):
            out = model(torch.randn(8, 4))
            if step % 10 == 9:
                log_statistics(step)
            expected.append((out == 0).float().mean().item())
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    scalars = events.Scalars("zeros/1/relu")
    assert [scalar.step for scalar in scalars] == [9, 19, 29]
    for i, scalar in enumerate(scalars):
        assert scalar.value == pytest.approx(sum(expected[10 * i : 10 * i + 10]) / 10)


def test_weights_and_biases_gets_the_measures_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    from fastrec.integrations.wandb import StatisticsLogger

    monkeypatch.setenv("WANDB_SILENT", "true")
    run = wandb.init(project="fastrec", mode="offline", dir=str(tmp_path))
    model, sink = policy(), StatisticsSink()
    try:
        with Recorder(model, keep_op="relu", sink=sink):
            log_statistics = StatisticsLogger(sink, run)
            for step in range(20):
                model(torch.randn(8, 4))
                if step % 10 == 9:
                    log_statistics(step)
            run.log({}, step=21)
        assert run.summary["zeros/1/relu"] == pytest.approx(0.5, abs=0.15)
        assert "dormant_0.025/1/relu" in dict(run.summary) and "saturated/1/relu" not in dict(run.summary)
    finally:
        run.finish()
    assert list(tmp_path.rglob("*.wandb"))


def test_the_logger_of_stable_baselines_gets_the_measures_of_each_update(tmp_path: Path) -> None:
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import CallbackList
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.logger import configure

    from fastrec.integrations.sb3 import RecordCallback, StatisticsCallback

    model = PPO("MlpPolicy", make_vec_env("CartPole-v1", n_envs=2, seed=0), n_steps=32, batch_size=32, device="cpu")
    model.set_logger(configure(str(tmp_path), ["csv"]))
    sink = StatisticsSink()
    with Recorder(model.policy, keep_op="tanh", autoreset="same_step", sink=sink) as rec:
        model.learn(192, callback=CallbackList([StatisticsCallback(sink, ["saturated", "norm"]), RecordCallback(rec)]))
    model.logger.close()
    with open(tmp_path / "progress.csv") as file:
        rows = list(csv.DictReader(file))
    columns = [name for name in rows[0] if name.startswith(("saturated/", "norm/"))]
    assert len(rows) == 3 and len(columns) == 8
    assert all(float(row["norm/mlp_extractor.policy_net.1/tanh"]) > 0 for row in rows)
    assert sink.statistics.time.last_mark[-1] > 0 and set(sink.statistics.time.phases) >= {"rollout", "train"}
