"""Draws the gallery: a picture of each model in `docs/gallery/`, and a page of each beside it. `make gallery` runs it.

Pictures are kept in the repository, pages are not: they are large, and made in a minute. Weights are random and inputs
small, so that nothing is downloaded; pictures don't depend on either.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastrec import Recorder
from fastrec.graph import ModelHistory, get_model_metadata, preview
from fastrec.sinks import StatisticsSink

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "gallery"


class Elman(nn.Module):
    """A recurrent network that is written out: one cell, called for each step."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.hidden, self.readout = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(x.shape[0], 8)
        for step in range(x.shape[1]):
            state = torch.tanh(self.inner(x[:, step]) + self.hidden(state))
        return self.readout(state)


class EarlyExit(nn.Module):
    """Stops after the first block where that one is sure."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(8, 16), nn.ReLU())
        self.second = nn.Sequential(nn.Linear(16, 16), nn.ReLU())
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.head(x).softmax(-1).max() < 0.99:
            x = self.second(x)
        return self.head(x)


def alexnet() -> ModelHistory:
    from torchvision.models import alexnet as make

    return get_model_metadata(make(weights=None).eval(), torch.zeros(1, 3, 224, 224))


def googlenet() -> ModelHistory:
    from torchvision.models import googlenet as make

    return get_model_metadata(make(weights=None, init_weights=False).eval(), torch.zeros(1, 3, 224, 224))


def swin() -> ModelHistory:
    from torchvision.models import swin_v2_b as make

    return get_model_metadata(make(weights=None).eval(), torch.zeros(1, 3, 256, 256))


def gpt2() -> ModelHistory:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=1000, n_embd=96, n_head=4, use_cache=False, bos_token_id=0, eos_token_id=0)
    ).eval()
    return get_model_metadata(model, torch.zeros(1, 8, dtype=torch.int64))


def policy() -> Any:
    from stable_baselines3 import PPO

    return PPO("MlpPolicy", "CartPole-v1", device="cpu").policy


def elman() -> ModelHistory:
    return get_model_metadata(Elman(), torch.zeros(1, 5, 4))


def early_exit() -> ModelHistory:
    return get_model_metadata(EarlyExit(), torch.zeros(1, 8))


class Exhibit(NamedTuple):
    """A picture: its file, what it shows in a sentence, and the options that it is drawn with."""

    file: str
    text: str
    options: Mapping[str, Any]


class Room(NamedTuple):
    """A model with its pictures; of the first one there is a page, too."""

    title: str
    make: Callable[[], Any]
    exhibits: Sequence[Exhibit]


def kept_of_policy() -> Any:
    return preview(policy(), torch.zeros(8, 4), keep_op="tanh", keep_module=["action_net", "value_net"])


ROOMS = (
    Room("AlexNet", alexnet, [Exhibit("alexnet", "All operations.", {})]),
    Room(
        "GoogLeNet",
        googlenet,
        [
            Exhibit("googlenet-1", "One level: each top-level module is a node.", {"vis_nesting_depth": 1}),
            Exhibit("googlenet-2", "Two levels: the branches of each Inception module.", {"vis_nesting_depth": 2}),
            Exhibit("googlenet-3", "Three levels: what the branches are made of.", {"vis_nesting_depth": 3}),
        ],
    ),
    Room(
        "A recurrent network",
        elman,
        [
            Exhibit("elman-rolled", "Rolled: each layer once, with the passes of each arrow.", {"vis_mode": "rolled"}),
            Exhibit("elman-unrolled", "Unrolled: each pass of each layer.", {}),
        ],
    ),
    Room("A condition", early_exit, [Exhibit("early-exit", "What ran, and where the condition began.", {})]),
    Room(
        "A policy of Stable-Baselines3",
        kept_of_policy,
        [Exhibit("sb3-policy", 'What a recorder keeps of it (`keep_op="tanh"` and both heads), in blue.', {})],
    ),
    Room(
        "GPT-2",
        gpt2,
        [
            Exhibit(
                "gpt2",
                "Twelve blocks as one, four levels open.",
                {"vis_nesting_depth": 4, "fold_repeats": True},
            )
        ],
    ),
    Room(
        "Swin Transformer V2",
        swin,
        [
            Exhibit(
                "swin",
                "1,795 operations; repeats folded, three levels open.",
                {"vis_nesting_depth": 3, "fold_repeats": True},
            )
        ],
    ),
)


def draw(room: Room) -> None:
    """Draw the pictures of a room, and write its page."""
    history = room.make()
    for exhibit in room.exhibits:
        history.draw(FOLDER / f"{exhibit.file}.svg", overwrite=True, **exhibit.options)
    history.to_html(FOLDER / f"{room.exhibits[0].file}.html", overwrite=True)


def run_ppo(timesteps: int = 8_000) -> StatisticsSink:
    """A run of PPO in which units go dormant, because its learning rate is thirty times too high; its statistics."""
    from stable_baselines3 import PPO

    policy = {"activation_fn": nn.ReLU, "net_arch": [64, 64]}
    options = {"learning_rate": 1e-2, "n_steps": 512, "policy_kwargs": policy, "device": "cpu", "seed": 0}
    model = PPO("MlpPolicy", "CartPole-v1", **options)
    sink = StatisticsSink()
    with Recorder(model.policy, keep_op="relu", sink=sink):
        model.learn(timesteps)
    return sink


def report_of_ppo() -> None:
    """Write the page of that run, and a picture of what it shows first."""
    from tests.helpers.browser import screenshot

    page = FOLDER / "ppo.html"
    run_ppo().to_html(page, title="PPO on CartPole", overwrite=True)
    screenshot(page, FOLDER / "ppo.png", hash="measure=dormant_0.025&theme=light", size=(1200, 450))


def readme() -> str:
    """The page with all pictures."""
    lines = ["# Gallery", "", INTRODUCTION]
    for room in ROOMS:
        lines += ["", f"## {room.title}"]
        for exhibit in room.exhibits:
            call = f"draw({', '.join(f'{name}={value!r}' for name, value in exhibit.options.items())})"
            lines += ["", f"{exhibit.text} `{call}`", "", f"![{room.title}: {exhibit.text}]({exhibit.file}.svg)"]
    return "\n".join([*lines, "", REPORT]) + "\n"


def main(only: Sequence[str]) -> None:
    """Draw the rooms of these titles, or all."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of the libraries that the models come from
    rooms = [room for room in ROOMS if not only or room.title in only]
    if rooms:
        from tests.zoo.vision import define_operators

        define_operators()
    for room in rooms:
        draw(room)
    if not only or REPORT_TITLE in only:
        report_of_ppo()
    (FOLDER / "README.md").write_text(readme())


INTRODUCTION = """Models as fastrec draws them, without Graphviz. `make gallery` makes these pictures again, and beside
each a page to click through (`docs/gallery/alexnet.html` and so on). What the colours mean, and all options:
[Looking at a model](../drawings.md)."""

REPORT_TITLE = "A run of PPO"

REPORT = f"""## {REPORT_TITLE}

PPO of Stable-Baselines3 learns CartPole with a learning rate that is thirty times too high. A `StatisticsSink` watches
the four relus of its policy and keeps no values: soon half of the units of its second layer are dormant.
`sink.to_html("ppo.html")`

![{REPORT_TITLE}: the share of dormant units of each relu over the run](ppo.png)"""

if __name__ == "__main__":
    main(sys.argv[1:])
