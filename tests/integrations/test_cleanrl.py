"""Loops in the style of CleanRL's files: an agent without ``forward``, several networks, preallocated storage."""

import gymnasium
import pytest
import torch
from gymnasium.vector import SyncVectorEnv
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.nn import functional as F

from fastrec import Recorder, Recording
from fastrec.predicates import op

STEPS, ENVS = 24, 4


class Agent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.critic = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1))
        self.actor = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 2))

    def get_value(self, x: Tensor) -> Tensor:
        return self.critic(x)

    def get_action_and_value(self, x: Tensor, action: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        probs = Categorical(logits=self.actor(x))
        if action is None:
            action = probs.sample()
        return action, probs.log_prob(action), probs.entropy(), self.critic(x)


class Storage:
    """What the file keeps of a rollout."""

    def __init__(self) -> None:
        self.obs = torch.zeros(STEPS, ENVS, 4)
        self.actions = torch.zeros(STEPS, ENVS)
        self.logprobs = torch.zeros(STEPS, ENVS)
        self.values = torch.zeros(STEPS, ENVS)


def cart_poles() -> SyncVectorEnv:
    return SyncVectorEnv([lambda: gymnasium.make("CartPole-v1", max_episode_steps=9)] * ENVS)


def ppo(agent: Agent, rec: Recorder, *, region: bool, iterations: int = 2) -> Storage:
    """PPO as CleanRL writes it, with the recorder's calls; the storage of the last iteration."""
    envs, storage = cart_poles(), Storage()
    optimizer = torch.optim.Adam(agent.parameters(), lr=1e-3)
    next_obs = torch.as_tensor(envs.reset(seed=1)[0])
    for _ in range(iterations):
        with rec.phase("rollout"):
            for step in range(STEPS):
                storage.obs[step] = next_obs
                with torch.no_grad():
                    if region:
                        with rec.region("act"):
                            action, logprob, _, value = agent.get_action_and_value(next_obs)
                    else:
                        action, logprob, _, value = agent.get_action_and_value(next_obs)
                    storage.values[step] = value.flatten()
                storage.actions[step], storage.logprobs[step] = action, logprob
                obs, reward, terminated, truncated, _ = envs.step(action.numpy())
                rec.step(reward=reward, terminated=terminated, truncated=truncated)
                next_obs = torch.as_tensor(obs)
        with torch.no_grad(), rec.phase("bootstrap"):
            agent.get_value(next_obs)
        with rec.phase("train"):
            for indices in torch.randperm(STEPS * ENVS).split(32):
                x, a = storage.obs.reshape(-1, 4)[indices], storage.actions.reshape(-1)[indices]
                _, logprob, entropy, value = agent.get_action_and_value(x, a)
                ratio = (logprob - storage.logprobs.reshape(-1)[indices]).exp()
                loss = value.square().mean() - ratio.mean() - 0.01 * entropy.mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return storage


def of_last_iteration(recording: Recording, key: str) -> Tensor:
    """[T, N, ...], as the storage."""
    rows = recording.select(phase="rollout", steps=slice(-STEPS, None)).stack(key)
    assert rows.shape[:2] == (STEPS, ENVS)
    return rows


@pytest.mark.parametrize("region", [False, True])
def test_recorded_rows_drop_next_to_the_storage(region: bool) -> None:
    agent = Agent()
    with Recorder(agent, keep_module=["critic", "actor.3"], autoreset="next_step") as rec:
        storage = ppo(agent, rec, region=region)
    recording = rec.recording
    assert torch.equal(of_last_iteration(recording, "critic").squeeze(-1), storage.values)
    assert of_last_iteration(recording, "actor.3").shape == (STEPS, ENVS, 16)
    minibatches = recording.select(phase="train")
    assert minibatches.stack("actor.3").shape == (2 * 3, 32, 16)
    assert len(minibatches.steps) == 0
    assert recording.select(phase="bootstrap").stack("critic").shape == (2, ENVS, 1)


def test_updates_recompute_what_the_rollout_recorded() -> None:
    agent = Agent()
    with Recorder(agent, keep_module="actor.3", autoreset="next_step") as rec:
        storage = ppo(agent, rec, region=False, iterations=1)
        recorded = of_last_iteration(rec.recording, "actor.3").clone()
    torch.manual_seed(0)
    first = Agent()  # the parameters that the rollout had
    torch.testing.assert_close(recorded.reshape(-1, 16), first.actor[:4](storage.obs.reshape(-1, 4)).detach())


def test_a_region_is_one_pass_with_the_ops_outside_of_modules() -> None:
    agent = Agent()
    with Recorder(agent, keep_op=op("tanh", "multinomial"), autoreset="next_step") as rec:
        storage = ppo(agent, rec, region=True)
    acting = rec.recording.select(entry="act")
    assert acting.n_passes == 2 * STEPS
    sampled = [name for name in acting.sites if name.endswith("multinomial")]
    assert len(sampled) == 1
    assert torch.equal(of_last_iteration(rec.recording, sampled[0]).squeeze(-1).float(), storage.actions)
    assert torch.equal(acting.stack("actor.1/tanh"), rec.recording.select(phase="rollout").stack("actor.1/tanh"))


def test_plain_calls_are_passes_of_the_networks_they_enter() -> None:
    agent = Agent()
    with Recorder(agent, keep_op="tanh", autoreset="next_step") as rec:
        ppo(agent, rec, region=False, iterations=1)
    rollout = rec.recording.select(phase="rollout")
    assert rollout.n_passes == 2 * STEPS
    assert {record.ctx.entry for record in rollout} == {"actor", "critic"}
    assert [rollout.select(entry=name).n_passes for name in ("actor", "critic")] == [STEPS, STEPS]


def test_learning_is_not_changed() -> None:
    def trained(keep: str) -> list[Tensor]:
        torch.manual_seed(5)
        agent = Agent()
        with Recorder(agent, keep_op=keep, autoreset="next_step") as rec:
            if keep == "nothing":
                with rec.pause():
                    ppo(agent, rec, region=False)
            else:
                ppo(agent, rec, region=False)
        return [p.detach() for p in agent.parameters()]

    with pytest.warns(match="no pass was recorded"):
        plain = trained("nothing")
    assert all(torch.equal(a, b) for a, b in zip(plain, trained("tanh"), strict=True))


class Actor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(3, 16), nn.Linear(16, 16)
        self.mean, self.log_std = nn.Linear(16, 1), nn.Linear(16, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.fc2(F.relu(self.fc1(x))))
        return self.mean(x), self.log_std(x).clamp(-5, 2)

    def get_action(self, x: Tensor) -> Tensor:
        mean, log_std = self(x)
        return torch.tanh(mean + log_std.exp() * torch.randn_like(mean))


class QNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 16), nn.Linear(16, 1)

    def forward(self, x: Tensor, a: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(torch.cat([x, a], 1))))


def test_sac_with_separate_networks_that_acts_with_gradients_enabled() -> None:
    actor, qf1, qf2 = Actor(), QNetwork(), QNetwork()
    envs = gymnasium.make_vec("Pendulum-v1", num_envs=2)
    taken, updates = [], 0
    roots = {"actor": actor, "qf1": qf1, "qf2": qf2}
    with Recorder(roots, keep_op="relu", keep_module="qf?", autoreset="next_step") as rec:
        obs, _ = envs.reset(seed=0)
        for step in range(20):
            x = torch.as_tensor(obs)
            with rec.phase("rollout"):
                actions = actor.get_action(x).detach()
                taken.append((x, actions))
                obs, reward, terminated, truncated, _ = envs.step(actions.numpy())
                rec.step(reward=reward, terminated=terminated, truncated=truncated)
            if step % 5 == 4:
                updates += 1
                batch, acted = (torch.cat(parts) for parts in zip(*taken, strict=True))
                with rec.phase("train"):
                    loss = torch.min(qf1(batch, actor.get_action(batch)), qf2(batch, acted)).mean()
                    loss.backward()
    rollout = rec.recording.select(phase="rollout", grad=True)
    # Step by step, because a processor may compute a larger batch in another order.
    hidden = torch.stack([F.relu(actor.fc2(F.relu(actor.fc1(x)))).detach() for x, _ in taken])
    assert torch.equal(rollout.stack("actor/relu_2"), hidden)
    assert not rollout.stack("actor/relu_2").requires_grad
    assert {record.ctx.entry for record in rollout} == {"actor"}
    train = rec.recording.select(phase="train")
    assert {record.ctx.entry for record in train} == {"actor", "qf1", "qf2"}
    assert [tuple(r.activation.shape) for r in train["qf2"]] == [(10 * (i + 1), 1) for i in range(updates)]
    assert [e.length for e in rec.recording.episodes()] == [20, 20]
