"""Small models made by hypothesis: branches and loops that are the same in every pass, shared modules, in-place ops."""

from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

OPS = {
    "sin": torch.sin,
    "double": lambda x: x * 2,
    "shift": lambda x: 1 - x,
    "relu": F.relu,
    "softmax": lambda x: x.softmax(-1),
    "turn": lambda x: x.t().contiguous().t(),
    "halves": lambda x: torch.cat(x.chunk(2, dim=-1)[::-1], dim=-1),
    "norm": lambda x: F.layer_norm(x, (4,)),
}
WRITES = {
    "add": lambda x: x.add_(1),
    "iadd": lambda x: x.__iadd__(0.5),
    "set": lambda x: x.__setitem__((slice(None), 0), 3.0),
    "relu": F.relu_,
    "view": lambda x: x[:1].mul_(2),
    "out": lambda x: torch.mul(x, 0.5, out=x),
}
LEAVES: list[Any] = [
    lambda: nn.Linear(4, 4),
    nn.Tanh,
    lambda: nn.ReLU(inplace=True),
    nn.ReLU,
    nn.Identity,
    lambda: nn.LayerNorm(4),
    lambda: nn.Dropout(0.3),
    lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True)),
]


class Made(nn.Module):
    """Runs a list of instructions on two values."""

    def __init__(self, program: list[Any], children: list[nn.Module], output: str) -> None:
        super().__init__()
        self.program = program
        self.parts = nn.ModuleList(children)
        self.output = output

    def forward(self, x: Tensor) -> Any:
        values = [x, x * 1.5]
        self.run(self.program, values)
        a, b = values
        return {"one": a, "both": (a, b), "named": {"a": a, "b": [b, None]}}[self.output]

    def run(self, program: list[Any], values: list[Tensor]) -> None:
        for name, *rest in program:
            if name == "loop":
                for _ in range(rest[0]):
                    self.run(rest[1], values)
            elif name == "branch":
                self.run(rest[1] if rest[0] else [], values)
            else:
                self.act(name, values, *rest)

    def act(self, name: str, values: list[Tensor], what: Any = None) -> None:
        if name == "swap":
            values.reverse()
        elif name == "call":
            values[0] = _first(self.parts[what % len(self.parts)](values[0]))
        elif name == "op":
            values[0] = OPS[what](values[0])
        elif name == "write":
            values[0] = values[0] * 1
            WRITES[what](values[0])
        elif name == "write_late":  # into what an op or a module gave
            with torch.no_grad():
                WRITES[what](values[0])
        else:
            values[1] = values[0] + values[1]


def _first(out: Any) -> Tensor:
    while not isinstance(out, Tensor):
        out = next(iter(out.values() if isinstance(out, dict) else out))
    return out


_simple = st.one_of(
    st.tuples(st.just("call"), st.integers(0, 5)),
    st.tuples(st.just("op"), st.sampled_from(sorted(OPS))),
    st.tuples(st.just("write"), st.sampled_from(sorted(WRITES))),
    st.tuples(st.just("write_late"), st.sampled_from(sorted(WRITES))),
    st.just(("add",)),
    st.just(("swap",)),
)
_program = st.recursive(
    st.lists(_simple, min_size=1, max_size=4),
    lambda body: st.lists(
        st.one_of(
            _simple,
            st.tuples(st.just("loop"), st.integers(0, 3), body),
            st.tuples(st.just("branch"), st.booleans(), body),
        ),
        min_size=1,
        max_size=4,
    ),
    max_leaves=6,
)


@st.composite
def made_models(draw: Any, depth: int = 2) -> nn.Module:
    """A model for inputs of shape (3, 4) that runs the same ops in every pass."""
    children: list[nn.Module] = []
    for kind in draw(st.lists(st.integers(0, len(LEAVES)), min_size=1, max_size=4)):
        if kind < len(LEAVES):
            children.append(LEAVES[kind]())
        elif depth:
            children.append(draw(made_models(depth - 1)))
        else:
            children.append(nn.Identity())
    if draw(st.booleans()):
        children.append(children[0])  # at two addresses
    return Made(draw(_program), children, draw(st.sampled_from(["one", "both", "named"])))
