"""What a notebook shows of a history: an image without scripts, and nothing where that would show too much."""

from __future__ import annotations

import re
from base64 import b64decode
from html.parser import HTMLParser
from xml.etree import ElementTree

import torch
from torch import Tensor, nn

from fastrec.graph import get_model_metadata
from fastrec.graph.draw.notebook import FEW_NODES, MANY_NODES, first_opening
from fastrec.graph.draw.view import view_of
from tests.graph.draw.drawn_models import MODELS, Transformer, history_of
from tests.graph.models import Calls


def elements(html: str) -> dict[str, dict[str, str | None]]:
    found: dict[str, dict[str, str | None]] = {}

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found[tag] = dict(attrs)

    Parser().feed(html)
    return found


def test_a_history_is_an_image_that_needs_no_script_and_no_trust() -> None:
    for name in MODELS:
        shown = elements(history_of(name)._repr_html_() or "")
        assert set(shown) == {"div", "img", "small"}
        kind, _, data = (shown["img"]["src"] or "").partition(";base64,")
        assert kind == "data:image/svg+xml"
        assert ElementTree.fromstring(b64decode(data)).tag.endswith("svg")


def test_as_much_is_open_as_can_be_seen_at_a_glance() -> None:
    deep = get_model_metadata(Transformer(blocks=12), torch.zeros(1, 5, dtype=torch.int64)).drawing()
    seen = view_of(deep, first_opening(deep))
    assert FEW_NODES // 2 < len(seen.nodes) <= MANY_NODES
    assert [box.title[0] for box in seen.boxes if box.kind == "fold"] == ["@blocks.0 to @blocks.11 (x12)"]
    plain = get_model_metadata(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), torch.ones(1, 2)).drawing()
    assert all(node.kind == "node" for node in view_of(plain, first_opening(plain)).nodes)


def test_what_is_too_long_is_rolled_and_else_left_to_text() -> None:
    step = nn.Linear(2, 2)

    class Long(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.step = step

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(600):
                x = self.step(x)
            return x

    rolled = get_model_metadata(Long(), torch.ones(1, 2))._repr_html_() or ""
    assert "(x600)" in b64decode(re.search(r"base64,([^\"]*)", rolled)[1]).decode()  # type: ignore[index]

    def many(x: Tensor) -> Tensor:
        for number in range(600):
            x = x + number
        return x

    assert get_model_metadata(Calls(many), torch.ones(2))._repr_html_() is None
