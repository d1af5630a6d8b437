"""TorchRL collectors: recorded rows line up with the batches, whoever runs the policy."""

from collections.abc import Callable
from typing import Any

import gymnasium
import pytest
import torch
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.collectors import AsyncBatchedCollector, Collector
from torchrl.envs import GymEnv, GymWrapper, RewardSum, SerialEnv, StepCounter, TransformedEnv
from torchrl.modules import OneHotCategorical, ProbabilisticActor

import fastrec
from fastrec import Recorder
from fastrec.integrations.torchrl import aligned, collect

ENVS, FRAMES = 3, 150
HIDDEN = "module.0.module.1/tanh"


def make_net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))


def actor(net: nn.Module) -> ProbabilisticActor:
    module = TensorDictModule(net, in_keys=["observation"], out_keys=["logits"])
    return ProbabilisticActor(module, in_keys=["logits"], out_keys=["action"], distribution_class=OneHotCategorical)


def cart_pole() -> GymEnv:
    return GymWrapper(gymnasium.make("CartPole-v1", max_episode_steps=14))


def cart_poles() -> TransformedEnv:
    env = TransformedEnv(SerialEnv(ENVS, cart_pole), StepCounter())
    env.append_transform(RewardSum())
    env.set_seed(0)
    return env


def collector_of(policy: Callable[..., Any], env: Any = None, **options: Any) -> Collector:
    given = {"frames_per_batch": FRAMES, "total_frames": 2 * FRAMES, **options}
    return Collector(env or cart_poles(), policy, auto_register_policy_transforms=False, **given)


def test_a_collector_around_which_nothing_is_changed_but_the_block() -> None:
    net = make_net()
    policy = actor(net)
    collector = collector_of(policy)
    with Recorder(policy, keep_op="tanh") as rec:
        for batch in collector:
            assert batch.shape == (ENVS, FRAMES // ENVS)
            hidden = aligned(rec.pop(), HIDDEN, batch)
            torch.testing.assert_close(hidden, torch.tanh(batch["observation"] @ net[0].weight.T + net[0].bias))
    collector.shutdown()


def episodes_told(batches: list[Any]) -> list[tuple[int, int, float]]:
    """Environment, length and return of the episodes that ended, as TorchRL's own transforms count them."""
    together = torch.cat(batches, 1)
    told = []
    for env in range(ENVS):
        for t in torch.nonzero(together["next", "done"][env, :, 0]).flatten().tolist():
            after = together["next"][env, t]
            told.append((env, int(after["step_count"]), float(after["episode_reward"])))
    return told


def test_steps_and_episodes_are_those_of_the_batches() -> None:
    policy = actor(make_net())
    collector, batches = collector_of(policy), []
    with Recorder(policy, keep_op="tanh", autoreset="same_step") as rec:
        for batch in collect(collector, rec):
            batches.append(batch.clone())
            policy(batch.reshape(-1).select("observation"))  # an update between the batches
    collector.shutdown()
    recording = rec.recording
    assert len(recording.steps) == 2 * FRAMES // ENVS
    rewards = torch.cat(batches, 1)["next", "reward"]
    assert torch.equal(torch.from_numpy(recording.steps["reward"]), rewards[..., 0].T)
    ended = [e for e in recording.episodes() if e.terminated or e.truncated]
    found = sorted((e.env, e.start_step, e.length, float(e.columns["reward"].sum())) for e in ended)
    assert [(env, length, total) for env, _, length, total in found] == episodes_told(batches)
    assert {e.truncated for e in ended} == {True, False}
    hidden = recording.select(phase="rollout").stack(HIDDEN)
    for episode in ended:
        assert torch.equal(episode[HIDDEN], hidden[episode.start_step : episode.stop_step, episode.env])
    assert recording.select(phase="").stack(HIDDEN).shape == (2, FRAMES, 8)


def test_values_of_the_updates_do_not_pass_for_those_of_the_batch() -> None:
    policy = actor(make_net())
    collector = collector_of(policy)
    with Recorder(policy, keep_op="tanh", autoreset="same_step") as rec:
        for number, batch in enumerate(collect(collector, rec)):
            if number == 1:
                with pytest.raises(fastrec.FastrecError, match=r"have to begin with \(50, 3\); select the rollout"):
                    aligned(rec.recording.select(phase="rollout"), HIDDEN, batch)
    collector.shutdown()


def test_the_environment_is_left_as_it_was_also_when_the_policy_raises() -> None:
    class Failing(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            if self.calls == 5:
                raise ZeroDivisionError
            return x[..., :2]

    policy = actor(nn.Sequential(Failing()))
    collector = collector_of(policy)
    env = collector.env
    before = set(vars(env))
    with Recorder(policy, keep_module="**", autoreset="same_step") as rec:
        with pytest.raises(ZeroDivisionError):
            next(collect(collector, rec))
        policy[0].module[0].calls = 10
        assert set(vars(env)) == before
        assert rec.recording.n_passes > 0
        policy(cart_poles().reset())
    assert rec.recording[-1].ctx.phase == ""
    collector.shutdown()


def test_a_single_environment_and_its_random_frames() -> None:
    policy = actor(make_net())
    collector = collector_of(policy, cart_pole(), frames_per_batch=20, total_frames=40, init_random_frames=20)
    with Recorder(policy, keep_op="tanh", autoreset="same_step") as rec:
        batches = [batch.clone() for batch in collect(collector, rec)]
    collector.shutdown()
    assert len(rec.recording.steps) == 40
    assert [record.ctx.step for record in rec.recording] == list(range(20, 40))
    done = torch.cat([batch["next", "done"] for batch in batches]).flatten()
    assert sum(e.terminated or e.truncated for e in rec.recording.episodes()) == int(done.sum())


def test_a_policy_that_another_thread_runs_is_recorded() -> None:
    net = make_net()
    policy = actor(net)
    with Recorder(policy, keep_op="tanh") as rec:
        collector = AsyncBatchedCollector(
            create_env_fn=[cart_pole] * ENVS,
            policy=policy,
            frames_per_batch=30,
            total_frames=30,
            backend="threading",
            transport="driver",
        )
        batches = [batch.clone() for batch in collector]
        collector.shutdown()
    rows = torch.cat([record.activation for record in rec.recording])
    hidden = net[:2](torch.cat([batch["observation"].reshape(-1, 4) for batch in batches])).detach()
    assert len(hidden) == 30
    assert ((rows[None] - hidden[:, None]).abs().amax(-1) < 1e-6).any(1).all()
    with pytest.raises(fastrec.FastrecError, match="AsyncBatchedCollector does not run its env"):
        next(collect(collector, rec))


@pytest.mark.parametrize(
    ("recorder", "collector", "remedy"),
    [
        ({}, {}, "TorchRL's environments reset in the same step.*autoreset='same_step'"),
        ({"autoreset": "same_step"}, {"reset_at_each_iter": True}, "make the collector without it"),
    ],
)
def test_what_would_cut_episodes_wrongly_is_refused(
    recorder: dict[str, Any], collector: dict[str, Any], remedy: str
) -> None:
    policy = actor(make_net())
    made = collector_of(policy, **collector)
    with pytest.raises(fastrec.FastrecError, match=remedy):
        next(collect(made, Recorder(policy, keep_op="tanh", **recorder)))
    made.shutdown()
