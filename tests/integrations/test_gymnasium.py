"""Vectorised Gymnasium environments: rows line up with steps and episodes, however the environments reset."""

import sys
import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from torch import nn

import fastrec
from fastrec import Recorder
from fastrec.integrations.gymnasium import RecordEnvSteps, RecordSteps
from fastrec.predicates import kind

ENVS = 4
Told = list[tuple[int, int, float]]  # env, length, return


def policy_net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))


def cart_poles(mode: AutoresetMode, *, copy: bool = True) -> RecordEpisodeStatistics:
    envs = [lambda: gymnasium.make("CartPole-v1", max_episode_steps=30)] * ENVS
    return RecordEpisodeStatistics(SyncVectorEnv(envs, copy=copy, autoreset_mode=mode))


def told_by(info: dict[str, Any]) -> Told:
    """The episodes that RecordEpisodeStatistics tells of, from the infos of one step."""
    if "episode" not in info:
        return []
    ended = np.flatnonzero(info["_episode"])
    return [(int(e), int(info["episode"]["l"][e]), float(info["episode"]["r"][e])) for e in ended]


def roll_out(envs: VectorEnv[Any, Any, Any], policy: nn.Module, steps: int) -> tuple[torch.Tensor, Told]:
    """The observations that the policy saw, and the episodes that ended."""
    seen, told = [], []
    obs, _ = envs.reset(seed=0)
    for _ in range(steps):
        batch = torch.from_numpy(obs)
        seen.append(batch.clone())
        with torch.no_grad():
            actions = torch.distributions.Categorical(logits=policy(batch)).sample()
        obs, _, _, _, info = envs.step(actions.numpy())
        told += told_by(info)
    return torch.stack(seen), told


def ended(recording: fastrec.Recording) -> Told:
    episodes = [e for e in recording.episodes() if e.terminated or e.truncated]
    episodes.sort(key=lambda e: (e.stop_step, e.env))
    return [(e.env, e.length, float(e.columns["reward"].sum())) for e in episodes]


COUNTS_SAME_STEP = tuple(map(int, gymnasium.__version__.split(".")[:2])) >= (1, 4)
"""Before 1.4, RecordEpisodeStatistics leaves out the first step after a reset, although it is a step as any other."""


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, *([AutoresetMode.SAME_STEP] if COUNTS_SAME_STEP else [])])
def test_episodes_are_those_of_record_episode_statistics(mode: AutoresetMode) -> None:
    policy = policy_net()
    named = {AutoresetMode.NEXT_STEP: "next_step", AutoresetMode.SAME_STEP: "same_step"}[mode]
    with Recorder(policy, keep_op="tanh", autoreset=named) as rec:
        seen, told = roll_out(RecordSteps(cart_poles(mode), rec), policy, 120)
    recording = rec.recording
    assert len(told) > 12
    assert ended(recording) == told
    hidden = torch.tanh(policy[0](seen)).detach()
    torch.testing.assert_close(recording.stack("1/tanh"), hidden)
    for episode in recording.episodes():
        rows = slice(episode.start_step, episode.stop_step)
        torch.testing.assert_close(episode["1/tanh"], hidden[rows, episode.env])


def test_rows_in_which_an_environment_only_resets_are_marked() -> None:
    policy = policy_net()
    with Recorder(policy, keep_op="tanh", autoreset="next_step") as rec:
        _, told = roll_out(RecordSteps(cart_poles(AutoresetMode.NEXT_STEP), rec), policy, 120)
    steps = rec.recording.steps
    done = steps["terminated"] | steps["truncated"]
    assert steps["truncated"].any() or steps["terminated"].any()
    np.testing.assert_array_equal(steps["reset_only"][1:], done[:-1])
    assert (steps["reward"][steps["reset_only"]] == 0).all()
    assert (steps["reward"][~steps["reset_only"]] == 1).all()
    counted = sum(e.length for e in rec.recording.episodes())
    assert counted == 120 * ENVS - steps["reset_only"].sum()


def test_observation_buffers_that_are_written_again_are_recorded_as_they_were() -> None:
    policy = policy_net()
    with Recorder(policy, keep_op=kind("input"), include_source_events=True, autoreset="next_step") as rec:
        seen, _ = roll_out(RecordSteps(cart_poles(AutoresetMode.NEXT_STEP, copy=False), rec), policy, 20)
    recorded = rec.recording.stack(next(iter(rec.recording.sites)))
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(recorded, seen)


@pytest.mark.parametrize(
    ("mode", "told", "remedy"),
    [
        (AutoresetMode.NEXT_STEP, None, r"autoreset=None; open the recorder with autoreset='next_step'"),
        (AutoresetMode.NEXT_STEP, "same_step", r"open the recorder with autoreset='next_step'"),
        (AutoresetMode.SAME_STEP, "next_step", r"same step .* open the recorder with autoreset='same_step'"),
        (AutoresetMode.DISABLED, "next_step", r"reset by your loop .* open the recorder with autoreset='same_step'"),
    ],
)
def test_another_way_of_resetting_is_refused(mode: AutoresetMode, told: Any, remedy: str) -> None:
    rec = Recorder(policy_net(), keep_op="tanh", autoreset=told)
    with pytest.raises(fastrec.FastrecError, match=remedy):
        RecordSteps(cart_poles(mode), rec)


def test_environments_that_the_loop_resets_need_no_word_until_episodes_are_made() -> None:
    policy, episodes = policy_net(), {}
    for autoreset in (None, "same_step"):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with torch.no_grad(), Recorder(policy, keep_op="tanh", autoreset=autoreset) as rec:
                envs = RecordSteps(cart_poles(AutoresetMode.DISABLED), rec)
                obs, _ = envs.reset(seed=0)
                for _ in range(40):
                    actions = policy(torch.from_numpy(obs)).argmax(-1)
                    obs, _, terminated, truncated, _ = envs.step(actions.numpy())
                    ends = terminated | truncated
                    if ends.any():
                        obs, _ = envs.reset(options={"reset_mask": ends})
        assert bool(caught) == (autoreset is None)
        episodes[autoreset] = rec.recording.episodes(autoreset="same_step")
    complete = [e for e in episodes["same_step"] if e.terminated]
    assert complete and all(len(e) == e.columns["reward"].sum() for e in complete)
    assert [repr(e) for e in episodes[None]] == [repr(e) for e in episodes["same_step"]]


def test_a_single_environment_marks_steps_of_scalars() -> None:
    policy = policy_net()
    lengths = []
    with Recorder(policy, keep_op="tanh") as rec:
        env = RecordEnvSteps(gymnasium.make("CartPole-v1"), rec)
        for seed in range(3):
            obs, _ = env.reset(seed=seed)
            done, length = False, 0
            while not done:
                with torch.no_grad():
                    action = int(policy(torch.from_numpy(obs)).argmax())
                obs, _, terminated, truncated, _ = env.step(action)
                done, length = terminated or truncated, length + 1
            lengths.append(length)
    episodes = rec.recording.episodes()
    assert [e.length for e in episodes] == lengths
    assert [e["1/tanh"].shape for e in episodes] == [(length, 8) for length in lengths]


def test_a_single_environment_refuses_autoreset() -> None:
    rec = Recorder(policy_net(), keep_op="tanh", autoreset="same_step")
    with pytest.raises(fastrec.FastrecError, match="open the recorder without autoreset="):
        RecordEnvSteps(gymnasium.make("CartPole-v1"), rec)


def test_steps_are_marked_only_while_the_recorder_is_open() -> None:
    env = RecordEnvSteps(gymnasium.make("CartPole-v1"), Recorder(policy_net(), keep_op="tanh"))
    env.reset(seed=0)
    with pytest.raises(fastrec.FastrecError, match="use it inside its `with"):
        env.step(0)


# Gymnasium makes its processes the way that the platform is used to.
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.skipif(sys.platform == "win32", reason="starts processes")
def test_environments_in_other_processes_that_are_made_within_the_block() -> None:
    policy = policy_net()
    with Recorder(policy, keep_op="tanh", autoreset="next_step") as rec:
        envs = AsyncVectorEnv([lambda: gymnasium.make("CartPole-v1", max_episode_steps=7)] * 2)
        _, told = roll_out(RecordSteps(RecordEpisodeStatistics(envs), rec), policy, 30)
        envs.close()
    assert len(told) > 4
    assert ended(rec.recording) == told
