"""What a notebook shows of recordings, steps, episodes, rows and records: well-formed HTML without a script."""

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fastrec import Recorder, Recording, load, record
from fastrec.report.html import sparkline
from fastrec.report.picture import MAX_COLUMNS, MAX_ROWS, picture

VOID = {"img", "br", "path"}


class Checker(HTMLParser):
    """Sees whether each element ends, and that none runs anything."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag != "script" and not any(name.startswith("on") for name, _ in attrs)
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def checked(html: str) -> Checker:
    checker = Checker()
    checker.feed(html)
    assert checker.open == []
    return checker


@pytest.fixture(scope="module", params=["ram", "file"])
def recording(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    path = tmp_path_factory.mktemp("html") / "run.h5"
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
    sink = path if request.param == "file" else None
    with torch.no_grad(), Recorder(model, keep_op=True, sink=sink, autoreset="same_step") as rec:
        for i in range(40):
            model(torch.randn(3, 4) * i)
            done = np.full(3, i % 20 == 19)
            rec.step(reward=np.full(3, float(i)), terminated=done, truncated=~done & False)
    return load(path) if request.param == "file" else rec.recording


def test_a_recording_shows_its_sites_with_curves(recording: Recording) -> None:
    shown = checked(recording._repr_html_())
    assert shown.tags.count("svg") == 2 and {"0/linear", "1/relu", "3x8", "float32"} <= set(shown.texts)


def test_steps_show_their_columns(recording: Recording) -> None:
    shown = checked(recording.steps._repr_html_())
    assert {"40 steps", "reward", "float64", "3"} <= set(shown.texts) and shown.tags.count("svg") == 3


def test_an_episode_shows_its_columns(recording: Recording) -> None:
    shown = checked(recording.episodes()[0]._repr_html_())
    assert "Episode of env 0: steps 0 to 19, terminated" in shown.texts and shown.tags.count("svg") == 3


def test_rows_and_records_show_a_picture(recording: Recording) -> None:
    for html in (recording.rows("1/relu")._repr_html_(), recording.rows("1/relu", by="sample")._repr_html_()):
        assert checked(html).tags.count("img") == 1
    shown = checked(recording[7]._repr_html_())
    assert shown.tags.count("img") == 1 and {"site", "1/relu", "pass", "3"} <= set(shown.texts)


def test_records_show_the_first_of_them(recording: Recording) -> None:
    shown = checked(recording.records._repr_html_())
    assert {"80 records", "linear_1", "and 70 more"} <= set(shown.texts)


def test_statistics_show_curves(recording: Recording) -> None:
    assert checked(recording.describe()._repr_html_()).tags.count("svg") > 4


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize(
    "value",
    [
        torch.tensor(3.0),
        torch.empty(0, 3),
        torch.full((2, 2), float("nan")),
        torch.ones(2, 3, dtype=torch.complex64),
        torch.ones(2, 3, dtype=torch.bfloat16),
        torch.ones(2, 3, dtype=torch.bool),
        torch.randn(300, 500),
    ],
    ids=["scalar", "empty", "nan", "complex", "bfloat16", "bool", "large"],
)
def test_any_value_can_be_shown(value: torch.Tensor) -> None:
    recording = record(nn.Identity(), value, keep_module=True)
    checked(recording._repr_html_())
    checked(recording[0]._repr_html_())
    checked(recording.describe()._repr_html_())


def test_nothing_recorded_can_be_shown(recording: Recording) -> None:
    empty = recording.select(passes=slice(900, 901))
    for shown in (empty, empty.records, empty.steps):
        checked(shown._repr_html_())


def test_names_are_escaped() -> None:
    model = nn.Module()
    model.add_module("<script>alert(1)</script>", nn.ReLU())
    model.forward = lambda x: next(model.children())(x)  # type: ignore[method-assign]
    recording = record(model, torch.ones(2, 2), keep_op=True)
    for html in (recording._repr_html_(), recording[0]._repr_html_(), recording.describe()._repr_html_()):
        assert "<script>" not in html and any("<script>" in text for text in checked(html).texts)


def test_a_picture_has_the_colours_of_the_numbers() -> None:
    values = np.array([[1.0, -1.0, 0.0, np.nan, 0.5]])
    found = re.search(r"base64,([^\"]+)", picture(values))
    assert found is not None
    image = Image.open(io.BytesIO(base64.b64decode(found[1]))).convert("RGB")
    pixels: Any = np.asarray(image)[0].tolist()
    assert pixels[0] == [0x1F, 0x55, 0x9E] and pixels[1] == [0xC4, 0x62, 0x1A]
    assert pixels[2] == [0xF1, 0xF3, 0xF6] and pixels[3] == [0xC8, 0x1E, 0x1E]
    assert pixels[0] < pixels[4] < pixels[2]


def test_a_picture_of_many_numbers_shows_some() -> None:
    found = re.search(r"base64,([^\"]+)", picture(np.zeros((1000, 1000))))
    assert found is not None
    assert Image.open(io.BytesIO(base64.b64decode(found[1]))).size == (MAX_COLUMNS, MAX_ROWS)


def test_a_curve_needs_two_points() -> None:
    assert sparkline(np.array([1.0])) == "" and sparkline(np.full(5, np.nan)) == ""
    assert "NaN" not in sparkline(np.array([1.0, np.nan, 2.0])) and "nan" not in sparkline(np.array([1.0, np.inf, 2.0]))


def test_a_recording_whose_values_are_large_shows_no_curve(tmp_path: Path) -> None:
    with torch.no_grad(), Recorder(nn.Identity(), keep_module=True) as rec:
        for _ in range(3):
            rec.log(torch.zeros(512, 512))
    assert checked(rec.recording._repr_html_()).tags.count("svg") == 0
