"""The page of a run shows what the statistics say, in a real browser, and asks for nothing from anywhere."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fastrec import Recorder, Recording, record
from fastrec._errors import OptionError, RecordingExistsError, RecordingFileError
from fastrec.report import MEASURES, write_report
from tests.helpers.browser import open_page
from tests.report.runs import HOSTILE, run


@pytest.fixture(scope="module")
def recording() -> Recording:
    return run(bad_pass=37)


@pytest.fixture(scope="module")
def page(recording: Recording, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "run.html"
    recording.to_html(path, bins=30)
    return path


def data_of(page: Path) -> dict[str, Any]:
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert match is not None
    found: dict[str, Any] = json.loads(match[1])
    return found


def test_the_page_holds_the_statistics(page: Path, recording: Recording) -> None:
    statistics = recording.describe(bins=30)
    (told,) = data_of(page)["runs"]
    assert [site["name"] for site in told["sites"]] == list(statistics)
    assert told["name"] == "run" and told["time"]["episode_ends"] == statistics.time.episode_ends.tolist()
    for site in told["sites"]:
        for name, column in site["curves"].items():
            shown = [float("nan") if value is None else value for value in column]
            assert shown == pytest.approx(statistics[site["name"]][name].tolist(), rel=1e-3, nan_ok=True)


def test_names_and_definitions_are_those_of_the_measures(page: Path) -> None:
    told = {measure["name"]: measure["definition"] for measure in data_of(page)["measures"]}
    assert told == {measure.name: measure.definition for measure in MEASURES}


def test_nothing_in_the_page_can_ask_for_anything(page: Path) -> None:
    text = page.read_text()
    assert "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:" in text
    assert not re.search(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=", text.replace("<img src=x", ""))
    assert "Leon Sorokin" in text or "uPlot" in text


def test_it_opens_without_an_error_or_a_request(page: Path, recording: Recording) -> None:
    opened = open_page(
        page,
        """
        const rows = all("#rows .row").map((row) => row.dataset.site);
        const leaves = all("#tree .leaf").map((leaf) => leaf.dataset.site);
        return { rows, leaves, title: document.title, alarm: document.getElementById("alarms").textContent };
        """,
    )
    assert opened.problems == []
    assert sorted(opened.result["leaves"]) == sorted(recording.sites) and opened.result["title"] == "run"
    assert opened.result["rows"] == [
        name
        for name in opened.result["rows"]
        if name in recording.sites and ("relu" in name or "tanh" in name or HOSTILE[:4] in name)
    ]
    assert opened.result["alarm"].startswith(
        "body.0/linear first NaN in step 17 of 'training' (pass 37), and in 5 more"
    )


# Without a screen the browser makes few frames, and only a frame tells what is in sight: in these tests everything is.
ALL_IN_SIGHT = """
    window.IntersectionObserver = class {
      constructor(callback) { this.callback = callback; }
      observe(target) { setTimeout(() => this.callback([{ target, isIntersecting: true }], this)); }
      unobserve() {}
      disconnect() {}
    };
"""


def test_every_site_opens_and_draws_its_plots(page: Path, recording: Recording) -> None:
    opened = open_page(
        page,
        ALL_IN_SIGHT
        + """
        const found = {};
        for (const leaf of all("#tree .leaf")) {
          leaf.click();
          await pause(200);
          found[leaf.dataset.site] = all(".plot").map((plot) => [
            plot.dataset.plot, plot.querySelectorAll("canvas").length,
            plot.querySelector("dl").textContent.length > 20]);
        }
        return found;
        """,
        size=(1280, 4000),
    )
    assert opened.problems == [] and list(opened.result) and set(opened.result) == set(recording.sites)
    for name, plots in opened.result.items():
        assert all(canvases == 1 and defined for _, canvases, defined in plots), name
    assert [plot for plot, _, _ in opened.result["body.1/relu"]] == [
        *("values", "zeros", "dormant", "norm", "rank", "bad", "drift"),
    ]
    assert "saturated" in [plot for plot, _, _ in opened.result["body.3/tanh"]]
    assert "dormant" not in [plot for plot, _, _ in opened.result["head/linear"]]


def test_measures_orders_axes_searches_and_modules_change_what_is_shown(page: Path, recording: Recording) -> None:
    opened = open_page(
        page,
        """
        const rows = () => all("#rows .row").map((row) => row.dataset.site);
        const set = (id, value, event) => {
          const element = document.getElementById(id); element.value = value; element.dispatchEvent(new Event(event));
        };
        const choose = (id, value) => set(id, value, "change");
        const search = (text) => set("search", text, "input");
        const found = {};
        choose("measure", "zeros"); choose("sort", "model"); found.model = rows();
        choose("sort", "worst"); found.worst = rows();
        found.last = all("#rows .row .last")[0].textContent;
        search("body.*"); found.glob = rows(); search("type:linear"); found.type = rows();
        search("nothing"); found.none = rows(); search("");
        all(".only").find((b) => b.dataset.module === "body.1").click(); found.module = rows();
        press("Escape"); found.cleared = rows().length;
        choose("axis-choice", "pass"); found.pass = document.getElementById("axis").textContent;
        choose("axis-choice", "time"); found.time = document.getElementById("axis").textContent;
        found.hash = location.hash;
        return found;
        """,
    )
    result = opened.result
    assert opened.problems == []
    assert result["model"][:3] == ["body.0/linear", "body.1/relu", "body.2/linear"]
    zeros = recording.describe(bins=30)["body.1/relu"]["zeros"][-1]
    assert result["worst"][0] == "body.1/relu" and result["last"] == f"{100 * zeros:.0f} %"
    assert set(result["glob"]) == {"body.0/linear", "body.1/relu", "body.2/linear", "body.3/tanh"}
    assert set(result["type"]) == {"body.0/linear", "body.2/linear", "head/linear"}
    assert (result["none"], result["module"], result["cleared"]) == ([], ["body.1/relu"], 6)
    assert result["pass"].startswith("pass 0") and result["time"].startswith("time 0")
    assert "measure=zeros" in result["hash"] and "axis=time" in result["hash"]


def test_the_keyboard_does_it_all(page: Path) -> None:
    opened = open_page(
        page,
        """
        const found = {}; const value = (id) => document.getElementById(id).value;
        const before = value("measure");
        press("]"); found.next = value("measure") !== before; press("["); found.back = value("measure") === before;
        press("x"); found.axis = value("axis-choice"); press("s"); found.sort = value("sort");
        const theme = document.documentElement.dataset.theme;
        press("t"); found.theme = document.documentElement.dataset.theme !== theme;
        press("ArrowDown"); found.focused = document.activeElement.dataset.site; document.activeElement.click();
        found.open = document.getElementById("site-name").textContent;
        press("ArrowDown"); found.second = document.getElementById("site-name").textContent;
        press("Escape"); found.closed = document.getElementById("site").hidden;
        press("/"); found.search = document.activeElement.id; document.activeElement.blur();
        press("?"); found.help = document.getElementById("help").open;
        return found;
        """,
    )
    result = opened.result
    assert opened.problems == []
    assert result["next"] and result["back"] and result["theme"] and result["closed"] and result["help"]
    assert (result["axis"], result["sort"], result["search"]) == ("pass", "model", "search")
    assert result["focused"] == result["open"] == "body.1/relu" and result["second"] == "body.3/tanh"


def test_the_address_opens_a_site(page: Path) -> None:
    script = 'return [document.getElementById("site-name").textContent, document.documentElement.dataset.theme]'
    opened = open_page(page, script, hash="site=body.3/tanh&theme=dark&measure=norm")
    assert opened.problems == [] and opened.result == ["body.3/tanh", "dark"]
    assert open_page(page, script, hash="site=nothing&measure=none").problems == []


def test_the_colours_of_the_overview_are_those_of_the_numbers(page: Path, recording: Recording) -> None:
    opened = open_page(
        page,
        """
        const canvas = all("#rows .row").find((row) => row.dataset.site === "body.1/relu").querySelector("canvas");
        const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, 1).data;
        const darkness = (i) => 3 * 255 - pixels[4 * i] - pixels[4 * i + 1] - pixels[4 * i + 2];
        return Array.from({ length: canvas.width }, (_, i) => darkness(i));
        """,
        hash="measure=dead_units&theme=light",
    )
    dead = recording.describe(bins=30)["body.1/relu"]["dead_units"]
    dark = opened.result
    assert len(dark) == 30
    assert all((a < b) == (x < y) for a, b, x, y in zip(dead, dead[1:], dark, dark[1:], strict=False) if a != b)


def test_several_runs_are_laid_over_each_other(tmp_path: Path) -> None:
    path = tmp_path / "runs.html"
    write_report({"one": run(40).describe(), "two <b>": run(70, seed=1).describe()}, path)
    opened = open_page(
        path,
        ALL_IN_SIGHT
        + """
        all("#rows .row")[0].click(); await pause(200);
        return { runs: all("#runs strong").map((e) => e.textContent), height: all("#rows canvas")[0].height,
          keys: all(".plot .keys")[0].querySelectorAll("b").length, title: document.title,
          drawn: all(".plot canvas").length > 0 };
        """,
        size=(1280, 3000),
    )
    assert opened.problems == []
    result = {"runs": ["one", "two <b>"], "height": 2, "title": "one and two <b>", "drawn": True}
    assert {name: opened.result[name] for name in result} == result and opened.result["keys"] >= 2


def empty() -> Recording:
    with Recorder(nn.Linear(2, 2), keep_op="linear") as rec:
        rec.log(torch.ones(1, 2))
    return rec.recording.select(passes=slice(5, 6))


def nans() -> Recording:
    return record(nn.ReLU(), torch.full((3, 2), float("nan")), keep_op=True)


def contexts() -> Recording:
    from fastrec import CaptureSpec

    return record(nn.ReLU(), torch.ones(3, 2), keep_op=True, capture=CaptureSpec(save_activation=False))


@pytest.mark.parametrize(
    ("make", "rows"),
    [
        (empty, 0),
        (lambda: record(nn.ReLU(), torch.ones(3, 2), keep_op=True), 1),
        (nans, 1),
        (contexts, 0),
        (lambda: record(nn.Flatten(0), torch.empty(0, 2), keep_op=True), 0),
        (lambda: record(nn.ReLU(), torch.tensor(3.0), keep_op=True), 1),
    ],
    ids=["no records", "one record", "only NaN", "no values", "empty values", "a scalar"],
)
def test_small_and_odd_recordings_have_pages(make: Any, rows: int, tmp_path: Path) -> None:
    recording, path = make(), tmp_path / "page.html"
    recording.to_html(path)
    opened = open_page(
        path,
        """
        for (const leaf of all("#tree .leaf")) { leaf.click(); await pause(100); }
        const element = (id) => document.getElementById(id);
        return [all("#rows .row").length, element("empty").hidden, element("alarms").textContent];
        """,
    )
    assert opened.problems == []
    assert opened.result[:2] == [rows, rows > 0]
    assert opened.result[2] == ("" if make is not nans else f"{next(iter(recording.sites))} first NaN in pass 0")


def test_a_page_that_exists_is_not_written_over(recording: Recording, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("mine")
    with pytest.raises(RecordingExistsError, match=r"page.html' exists; give another path, or overwrite=True"):
        recording.to_html(path)
    assert path.read_text() == "mine"
    recording.to_html(path, overwrite=True, bins=5)
    assert path.read_text() != "mine" and list(tmp_path.iterdir()) == [path]


def test_a_page_that_can_not_be_written_is_an_error(recording: Recording, tmp_path: Path) -> None:
    with pytest.raises(RecordingFileError, match=r"no/page.html' can't be written: No such file or directory"):
        recording.to_html(tmp_path / "no" / "page.html", bins=5)


def test_a_page_of_no_runs_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="give the statistics of at least one run"):
        write_report({}, tmp_path / "page.html")


def test_forty_sites_of_many_bins_make_a_small_page(tmp_path: Path) -> None:
    model = nn.Sequential(*(part for _ in range(20) for part in (nn.Linear(16, 16), nn.ReLU())))
    with torch.no_grad(), Recorder(model, keep_op=True) as rec:
        for _ in range(400):
            model(torch.randn(4, 16))
    path = tmp_path / "page.html"
    rec.recording.to_html(path, bins=400)
    assert len(data_of(path)["runs"][0]["sites"]) == 40
    assert path.stat().st_size < 2_500_000
