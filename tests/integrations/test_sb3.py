"""Stable-Baselines3 trains as ever inside of the block, and the callback tells its passes apart."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    EvalCallback,
    ProgressBarCallback,
    StopTrainingOnMaxEpisodes,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv

import fastrec
from fastrec import Recorder, Recording
from fastrec.integrations.sb3 import RecordCallback

ENVS, STEPS, ITERATIONS = 2, 32, 3
SMALL = {"net_arch": [8, 8]}  # copied, as the algorithms write into it


def cart_poles(envs: int = ENVS) -> VecEnv:
    return make_vec_env("CartPole-v1", n_envs=envs, seed=0, env_kwargs={"max_episode_steps": 13})


def ppo() -> PPO:
    return PPO(
        "MlpPolicy",
        cart_poles(),
        n_steps=STEPS,
        batch_size=16,
        n_epochs=2,
        seed=0,
        device="cpu",
        policy_kwargs=dict(SMALL),
    )


def dqn(**options: Any) -> DQN:
    given = {"learning_starts": 20, "train_freq": 4, "batch_size": 8, "exploration_fraction": 0.5, **options}
    return DQN("MlpPolicy", cart_poles(1), seed=0, device="cpu", policy_kwargs=dict(SMALL), **given)


def recorder(model: BaseAlgorithm, **options: Any) -> Recorder:
    return Recorder(model.policy, autoreset="same_step", **options)


def monitored(env: VecEnv) -> list[tuple[int, int, float]]:
    """The episodes that Monitor wrapped around each environment has seen: env, length, return."""
    lengths, returns = env.env_method("get_episode_lengths"), env.env_method("get_episode_rewards")
    return sorted(
        (e, length, ret) for e in range(env.num_envs) for length, ret in zip(lengths[e], returns[e], strict=True)
    )


def buffered_values(model: PPO) -> np.ndarray:
    """The values in the rollout buffer as [steps, envs]; the update has laid them out env by env."""
    return model.rollout_buffer.values.reshape(ENVS, STEPS).T


def ended(recording: Recording) -> list[tuple[int, int, float]]:
    episodes = [e for e in recording.episodes() if e.terminated or e.truncated]
    return sorted((e.env, e.length, float(e.columns["reward"].sum())) for e in episodes)


def test_value_rows_of_an_unmodified_ppo_are_those_of_its_buffer(tmp_path: Path) -> None:
    model = ppo()
    with Recorder(model.policy, keep_module="value_net") as rec:
        model.learn(ENVS * STEPS * ITERATIONS)
        model.save(tmp_path / "model.zip")
    rollout = rec.recording.select(entry="", grad=False).stack("value_net")
    assert rollout.shape == (ITERATIONS * STEPS, ENVS, 1)
    np.testing.assert_array_equal(rollout[-STEPS:, :, 0].numpy(), buffered_values(model))
    loaded = PPO.load(tmp_path / "model.zip", device="cpu")
    assert all(torch.equal(a, b) for a, b in zip(model.policy.parameters(), loaded.policy.parameters(), strict=True))


def test_q_values_of_an_unmodified_dqn_explain_its_actions(tmp_path: Path) -> None:
    model = dqn(learning_starts=0, exploration_initial_eps=0.0, exploration_final_eps=0.0)
    with Recorder(model.policy, keep_module="q_net*.q_net") as rec:
        model.learn(60)
        model.save(tmp_path / "model.zip")
    acting = rec.recording.select(entry="q_net", grad=False, batch=1).stack("q_net.q_net")
    assert acting.shape == (60, 1, 2)
    np.testing.assert_array_equal(acting.argmax(-1).numpy(), model.replay_buffer.actions[:60, :, 0])
    updates = 60 // 4
    assert rec.recording.select(entry="q_net", grad=True).stack("q_net.q_net").shape == (updates, 8, 2)
    assert rec.recording.select(entry="q_net_target").stack("q_net_target.q_net").shape == (updates, 8, 2)


def test_ppo_with_the_callback_has_steps_episodes_and_phases() -> None:
    model = ppo()
    evaluation = EvalCallback(cart_poles(), n_eval_episodes=2, eval_freq=20, verbose=0)
    with recorder(model, keep_module=["value_net", "action_net"]) as rec:
        model.learn(ENVS * STEPS * ITERATIONS, callback=[evaluation, RecordCallback(rec)])
        evaluate_policy(model, cart_poles(), n_eval_episodes=1)
    recording = rec.recording

    rollout = recording.select(phase="rollout")
    values = rollout.stack("value_net")
    assert values.shape == (ITERATIONS * STEPS, ENVS, 1)
    np.testing.assert_array_equal(values[-STEPS:, :, 0].numpy(), buffered_values(model))
    assert set(recording.steps.phase) == {"rollout"}
    assert len(recording.steps) == ITERATIONS * STEPS

    assert ended(recording) == monitored(model.get_env())
    kinds = {(e.terminated, e.truncated) for e in recording.episodes()}
    assert {(True, False), (False, True)} <= kinds
    for episode in recording.episodes():
        assert torch.equal(episode["value_net"], values[episode.start_step : episode.stop_step, episode.env])

    cut = int(recording.steps["truncated"].sum())
    bootstrap = recording.select(phase="bootstrap")
    assert "action_net" not in bootstrap
    assert bootstrap.select(batch=1).stack("value_net").shape == (cut, 1, 1)
    assert bootstrap.select(batch=ENVS).stack("value_net").shape == (ITERATIONS, ENVS, 1)

    minibatches = ITERATIONS * 2 * (ENVS * STEPS // 16)
    train = recording.select(phase="train")
    assert train.stack("value_net").shape == (minibatches, 16, 1)
    assert train.select(grad=False).n_passes == 0

    evaluated = recording.select(phase="eval")
    assert "value_net" not in evaluated and len(evaluated["action_net"]) > 0
    after = recording.select(phase="")
    assert "value_net" not in after and len(after["action_net"]) > 0  # evaluate_policy after learn


def test_bootstrap_values_are_what_the_rewards_were_raised_by() -> None:
    model = ppo()
    with recorder(model, keep_module="value_net") as rec:
        model.learn(ENVS * STEPS, callback=RecordCallback(rec))
    steps = rec.recording.steps
    added = (model.rollout_buffer.rewards - steps["reward"])[steps["truncated"]]
    values = rec.recording.select(phase="bootstrap", batch=1).stack("value_net").flatten()
    assert len(values) > 2
    np.testing.assert_allclose(added, model.gamma * values.numpy(), rtol=1e-4)


def test_dqn_with_the_callback_marks_the_steps_without_a_pass_too() -> None:
    model = dqn()
    evaluation = EvalCallback(cart_poles(1), n_eval_episodes=1, eval_freq=30, verbose=0)
    with recorder(model, keep_module="q_net.q_net") as rec:
        model.learn(120, callback=CallbackList([evaluation, RecordCallback(rec)]))
    recording = rec.recording
    assert len(recording.steps) == 120
    assert ended(recording) == monitored(model.get_env())

    rollout = recording.select(phase="rollout")
    chosen = [record.ctx.step for record in rollout]
    assert 0 < len(chosen) < 100 and len(set(chosen)) == len(chosen) and min(chosen) >= 20
    greedy = rollout.stack("q_net.q_net").argmax(-1).flatten().numpy()
    np.testing.assert_array_equal(greedy, model.replay_buffer.actions[chosen, 0, 0])
    with pytest.raises(fastrec.FastrecError, match=r"fired 0 times in step 0 of phase 'rollout'"):
        recording.episodes()[0]["q_net.q_net"]

    evaluated = recording.select(phase="eval")
    assert evaluated.n_passes > 0 and evaluated.select(grad=True).n_passes == 0
    assert recording.select(phase="train", entry="q_net").stack("q_net.q_net").shape == (25, 8, 2)


ALGORITHMS = {
    "ppo": ppo,
    "a2c": lambda: A2C("MlpPolicy", cart_poles(), n_steps=4, seed=0, device="cpu", policy_kwargs=dict(SMALL)),
    "dqn": dqn,
    "sac": lambda: SAC(
        "MlpPolicy", "Pendulum-v1", learning_starts=20, batch_size=8, seed=0, device="cpu", policy_kwargs=dict(SMALL)
    ),
    "td3": lambda: TD3(
        "MlpPolicy", "Pendulum-v1", learning_starts=20, batch_size=8, seed=0, device="cpu", policy_kwargs=dict(SMALL)
    ),
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_learning_is_not_changed(name: str) -> None:
    plain = ALGORITHMS[name]()
    plain.learn(80)
    model = ALGORITHMS[name]()
    with recorder(model, keep_op=True, keep_module=True) as rec:
        model.learn(80, callback=RecordCallback(rec))
    for (parameter, a), b in zip(plain.policy.state_dict().items(), model.policy.state_dict().values(), strict=True):
        assert torch.equal(a, b), parameter
    steps = rec.recording.steps
    assert len(steps) * model.n_envs == model.num_timesteps
    rollout = rec.recording.select(phase="rollout")
    assert 0 < len({record.ctx.step for record in rollout}) <= len(steps)
    assert rec.recording.select(phase="train").n_passes > 0


@pytest.mark.parametrize("name", ["sac", "td3"])
def test_actors_of_off_policy_algorithms_are_recorded_from_where_they_are_asked(name: str) -> None:
    model = ALGORITHMS[name]()
    with recorder(model, keep_module="actor") as rec:
        model.learn(60, callback=RecordCallback(rec))
    chosen = [record.ctx.step for record in rec.recording.select(phase="rollout")]
    assert chosen == list(range(20, 60))


def test_roots_below_the_policy_have_the_same_phases() -> None:
    model = ppo()
    with Recorder({"critic": model.policy.value_net}, keep_module="critic", autoreset="same_step") as rec:
        model.learn(ENVS * STEPS, callback=RecordCallback(rec))
    values = rec.recording.select(phase="rollout").stack("critic")
    np.testing.assert_array_equal(values.squeeze(-1).numpy(), buffered_values(model))


def test_training_twice_goes_on_counting_steps() -> None:
    model = ppo()
    with recorder(model, keep_module="value_net") as rec:
        callback = RecordCallback(rec)
        model.learn(ENVS * STEPS, callback=callback)
        model.learn(ENVS * STEPS, callback=callback, reset_num_timesteps=False)
    assert rec.recording.steps.step.tolist() == list(range(2 * STEPS))
    assert rec.recording.select(phase="rollout").stack("value_net").shape == (2 * STEPS, ENVS, 1)


def test_a_training_that_another_callback_ends_leaves_its_phase() -> None:
    model = ppo()
    with recorder(model, keep_module=["value_net", "action_net"]) as rec:
        model.learn(ENVS * STEPS, callback=[StopTrainingOnMaxEpisodes(1), RecordCallback(rec)])
        evaluate_policy(model, cart_poles(), n_eval_episodes=1)
    stopped = len(rec.recording.steps)
    assert 0 < stopped < STEPS
    assert rec.recording.select(phase="rollout").stack("value_net").shape == (stopped, ENVS, 1)
    assert "value_net" not in rec.recording.select(phase="")


class Watcher(BaseCallback):
    def _on_step(self) -> bool:
        return True


class Bar(ProgressBarCallback):
    """The progress bar of ``learn(progress_bar=True)``, without its drawing."""

    def __init__(self) -> None:
        BaseCallback.__init__(self)

    _on_training_start = _on_training_end = BaseCallback._on_training_end
    _on_step = Watcher._on_step


def test_a_callback_behind_it_is_refused() -> None:
    model = ppo()
    with recorder(model, keep_module="value_net") as rec:
        with pytest.raises(fastrec.FastrecError, match="Watcher comes after RecordCallback.* put RecordCallback last"):
            model.learn(ENVS * STEPS, callback=CallbackList([CallbackList([RecordCallback(rec)]), Watcher()]))
        model.learn(ENVS * STEPS, callback=CallbackList([Watcher(), CallbackList([RecordCallback(rec), Bar()])]))
    assert len(rec.recording.steps) == STEPS


def test_another_way_of_resetting_is_refused() -> None:
    model = ppo()
    with Recorder(model.policy, keep_module="value_net", autoreset="next_step") as rec:
        with pytest.raises(fastrec.FastrecError, match="Stable-Baselines3 reset in the same step.*'same_step'"):
            model.learn(ENVS * STEPS, callback=RecordCallback(rec))
        model.policy(torch.zeros(1, 4))


def test_a_recorder_that_is_not_open_is_refused() -> None:
    model = ppo()
    with pytest.raises(fastrec.FastrecError, match="use it inside its `with"):
        model.learn(ENVS * STEPS, callback=RecordCallback(recorder(model, keep_module="value_net")))
