"""Record the hidden layers of an actor-critic during a vectorised CartPole rollout, and draw them: ``make demo``.

The loop is an ordinary one. What fastrec adds is the ``with`` line and ``rec.step``.
"""

import argparse
import os
import sys
from collections.abc import Iterator

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

import fastrec
from fastrec import Recorder, Recording
from fastrec.__main__ import main as command_line
from fastrec.predicates import after, op
from fastrec.sinks import HDF5Sink

ENVS = 8
UNITS, WIDTH, BLOCKS = 10, 64, "▁▂▃▄▅▆▇█"


class ActorCritic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden1 = nn.Sequential(nn.Linear(4, 64), nn.Tanh())
        self.hidden2 = nn.Sequential(nn.Linear(64, 64), nn.Tanh())
        self.actor = nn.Linear(64, 2)
        self.critic = nn.Linear(64, 1)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.hidden2(self.hidden1(obs))
        return torch.softmax(self.actor(hidden), dim=-1), self.critic(hidden)


def main(steps: int, path: str) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # a small policy is quicker without threads
    policy = ActorCritic()
    envs = gym.make_vec("CartPole-v1", num_envs=ENVS, vectorization_mode="sync")
    envs = gym.wrappers.vector.RecordEpisodeStatistics(envs, buffer_length=steps * ENVS)
    seen = np.empty((steps, ENVS, 4), np.float32)  # for the check at the end

    obs, _ = envs.reset(seed=0)
    with Recorder(
        policy,
        keep_module=["hidden1", "hidden2"],  # the outputs of two layers
        keep_op=op("softmax") & after("linear"),  # a functional op, which no hook can see
        autoreset="next_step",  # how these environments reset
        sink=HDF5Sink(path, overwrite=True),  # or nothing, to record into RAM
    ) as rec:
        for step in progress(steps):
            seen[step] = obs
            with torch.no_grad():
                probabilities, _ = policy(torch.as_tensor(obs))
            action = torch.multinomial(probabilities, 1).squeeze(-1)
            obs, reward, terminated, truncated, _ = envs.step(action.numpy())
            rec.step(reward=reward, terminated=terminated, truncated=truncated)

    for command in ("info", "ls"):
        heading(f"fastrec {command} {path}")
        command_line([command, path])
    recording = fastrec.load(path)
    show_what_was_kept(recording)
    show_that_steps_line_up(recording, policy, seen)
    show_that_episodes_line_up(recording, envs)
    draw_an_episode(recording)
    write_a_page(recording, os.path.splitext(path)[0] + ".html")


def show_what_was_kept(recording: Recording) -> None:
    heading("rows line up with steps and environments")
    for key in ("hidden1", "hidden2", "/softmax"):
        print(f"recording.stack({key!r}) has the shape [steps, envs, ...] = {tuple(recording.stack(key).shape)}")


def show_that_steps_line_up(recording: Recording, policy: ActorCritic, seen: np.ndarray) -> None:
    step = len(seen) // 2
    (record,) = recording.select(steps=step)["hidden1"]
    with torch.no_grad():
        again = policy.hidden1(torch.as_tensor(seen[step]))
    same = torch.equal(record.activation, again)
    print(f"hidden1 computed again from the observations of step {step} equals {record}: {same}")


def show_that_episodes_line_up(recording: Recording, envs: gym.vector.VectorEnv) -> None:
    episodes = [episode for episode in recording.episodes() if episode.terminated or episode.truncated]
    lengths = [episode.length for episode in episodes]
    returns = [episode.columns["reward"].sum() for episode in episodes]
    resets = recording.steps["reset_only"].sum()

    heading("episodes come from the columns of the steps")
    print("finished episodes         count  mean length  mean return")
    row = "{:24} {:6} {:12.3f} {:12.3f}".format
    print(row("found in the recording", len(episodes), np.mean(lengths), np.mean(returns)))
    print(row("counted by Gymnasium", envs.episode_count, np.mean(envs.length_queue), np.mean(envs.return_queue)))
    print(f"rows in which an environment only reset, in no episode: {resets}")


def draw_an_episode(recording: Recording) -> None:
    """One line per unit: the hidden layer of one environment from a reset to the fall of the pole."""
    longest = max(recording.episodes(), key=len)
    heading(f"the longest episode: {longest}")
    hidden, right = longest["hidden2"], longest["/softmax"][:, 1]
    busiest = hidden.std(0).argsort(descending=True)[:UNITS].sort().values
    for unit in busiest.tolist():
        curve = hidden[:, unit]
        print(f"hidden2[{unit:2}]  {drawn(curve)}  {curve.min():+.2f} to {curve.max():+.2f}")
    print(f"push right   {drawn(right)}  {right.min():.2f} to {right.max():.2f}")


def write_a_page(recording: Recording, path: str) -> None:
    """The whole run as a page: what each layer did from the first step to the last."""
    recording.to_html(path, title="an untrained policy in CartPole", overwrite=True)
    heading("the whole run as a page, which opens in any browser")
    print(f"open {os.path.abspath(path)}")


def drawn(values: Tensor) -> str:
    """A curve in block letters, from its least value to its greatest."""
    values = torch.nn.functional.interpolate(values[None, None], min(WIDTH, len(values)), mode="linear")[0, 0]
    spread = (values.max() - values.min()).clamp(min=1e-9)
    levels = ((values - values.min()) / spread * (len(BLOCKS) - 1)).round().int().tolist()
    return "".join(BLOCKS[level] for level in levels)


def heading(text: str) -> None:
    print(f"\n\x1b[1m{text}\x1b[0m" if sys.stdout.isatty() else f"\n{text}")


def progress(steps: int) -> Iterator[int]:
    """Count steps with a progress bar, or in plain lines where the output is no terminal."""
    if sys.stderr.isatty():
        yield from tqdm(range(steps), unit="step", unit_scale=True)
        return
    for step in range(steps):
        if step % max(1, steps // 4) == 0:
            print(f"step {step} of {steps}", flush=True)
        yield step


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=4000, help="steps of each of the environments (default 4000)")
    parser.add_argument("--file", default="rollout.h5", help="the file to record into (default rollout.h5)")
    given = parser.parse_args()
    main(given.steps, given.file)
