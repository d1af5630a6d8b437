"""What pictures and pages cost: ``python -m benchmarks.drawing`` rewrites drawing.md, in a few minutes.

It needs torchvision (`.venv-zoo`), Graphviz and Chromium, and draws with the reference where `make bench-reference`
installed it. All times are CPU times of one process and its children, apart from those in the browser, where only a
clock can be read; contestants take turns.
"""

from __future__ import annotations

import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from html import unescape
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import fastrec
from fastrec.graph import get_model_metadata
from fastrec.graph.draw.dot import dot_text
from fastrec.graph.draw.graphviz import rendered
from fastrec.graph.draw.page import page_of
from fastrec.graph.draw.svg import svg_of
from fastrec.graph.draw.view import opening_at, view_of

ROOT = Path(__file__).parent.parent
ROUNDS = 5
LIMIT = 300  # seconds that one other program may take
MODELS = {
    "GoogLeNet": ("googlenet", {"weights": None, "init_weights": False}, (1, 3, 224, 224)),
    "swin_v2_b": ("swin_v2_b", {"weights": None}, (1, 3, 256, 256)),
    "DenseNet-201": ("densenet201", {"weights": None}, (1, 3, 224, 224)),
}


def made(name: str) -> tuple[nn.Module, Tensor]:
    """A model with random weights, and its input."""
    from tests.zoo.vision import define_operators

    define_operators()
    from torchvision import models

    maker, options, shape = MODELS[name]
    torch.manual_seed(0)
    return getattr(models, maker)(**options).eval(), torch.zeros(shape)


def cpu(work: Callable[[], Any]) -> float:
    """The seconds of CPU that some work takes, with those of programs that it runs."""
    before = _used()
    work()
    return _used() - before


def _used() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


Spread = tuple[float, float, float]


def spread(seconds: list[float]) -> Spread:
    return median(seconds), min(seconds), max(seconds)


class Jobs:
    """Jobs by name, each with the seconds that it took in every round."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def __call__(self, job: str, work: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Do a job, and return its result."""
        results: list[Any] = []
        seconds = cpu(lambda: results.append(work(*arguments, **options)))
        self.seconds.setdefault(job, []).append(seconds)
        return results[0]


def in_python(name: str) -> tuple[dict[str, Spread], dict[str, Any]]:
    """The seconds of each job, and what came out: counts, sizes, whether it is complete."""
    model, x = made(name)
    jobs = Jobs()
    with torch.no_grad():
        for _ in range(ROUNDS):
            jobs("bare pass", model, x)
            history = jobs("log without values", get_model_metadata, model, x)
            drawing = jobs("description", history.drawing)
            folds = jobs("find repeats", getattr, drawing, "folds")
            dot = jobs("DOT text", dot_text, drawing)
            svg = jobs("SVG, everything open", svg_of, drawing, opening_at(drawing, None, folded=False))
            page = jobs("page", page_of, drawing)
        jobs("`dot -Tsvg` on the DOT text", run_dot, dot)
        jobs("SVG by Graphviz, as fastrec calls it", rendered, drawing, "svg", seconds=LIMIT)
    assert svg.count('class="n"') == len(drawing.nodes) and len(view_of(drawing).nodes) == len(drawing.nodes)
    facts = {
        "operations": len(drawing.nodes),
        "modules": len(drawing.boxes),
        "edges": len(drawing.edges),
        "folds": len(folds),
        "page": page,
    }
    return {job: spread(seconds) for job, seconds in jobs.seconds.items()}, facts


def run_dot(text: str) -> None:
    """Draw with ``dot`` alone; a limit counts as the time."""
    try:
        subprocess.run(["dot", "-Tsvg"], input=text.encode(), capture_output=True, check=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        pass


# The page in a browser

MEASURES = """
const flushed = () => { page.paint(); page.painter.context.getImageData(0, 0, 1, 1); };
const milliseconds = (work) => {
  const start = performance.now();
  work();
  flushed();
  return performance.now() - start;
};
const times = {firstPaint: page.firstPaint, expanding: [], search: [], panning: []};
flushed();
const modules = page.graph.modules.filter((module) => !module.isSingle && module.ops.length);
const every = Math.max(Math.floor(modules.length / 60), 1);
for (let index = 0; index < modules.length; index += every) {
  page.opening = openingAt(page.graph, 1);
  page.reveal({kind: "module", index: modules[index].index});
  page.opening.modules.delete(modules[index].index);
  page.rebuild();
  settle(page);
  times.expanding.push(milliseconds(() => { page.toggleModule(modules[index].index); settle(page); }));
}
for (let count = 0; count < 20; count++) {
  page.opening = openingAt(page.graph, 1);
  page.rebuild();
  settle(page);
  const op = page.graph.ops[Math.floor(count * page.graph.ops.length / 20)];
  times.search.push(milliseconds(() => {
    const {hits} = page.search.find(op.label);
    page.follow(hits[0]);
    settle(page);
  }));
}
times.open = milliseconds(() => { page.openTo(page.graph.depth); settle(page); });
page.zoom(1 / page.camera.scale);
for (let frame = 0; frame < 90; frame++) times.panning.push(milliseconds(() => page.pan(0, frame % 2 ? 40 : -25)));
times.nodes = page.scene.nodes.length;
document.body.append(element("pre", {id: "times"}, JSON.stringify(times)));
"""


def in_browser(page: str) -> dict[str, Any]:
    """What the page measures of itself, by the clock; each time includes painting, down to the pixels."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "page.html"
        file.write_text(page.replace("</body>", f"<script>{MEASURES}</script></body>"), encoding="utf-8")
        command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/profile"]
        command += ["--window-size=1280,800", "--dump-dom", file.as_uri()]
        runs = [subprocess.run(command, capture_output=True, text=True, check=True, timeout=LIMIT) for _ in range(3)]
    texts = [re.search(r'<pre id="times">(.*?)</pre>', run.stdout) for run in runs]
    found = [json.loads(unescape(text[1])) for text in texts if text]
    return min(found, key=lambda times: times["firstPaint"])  # the browser's own start is not ours


# The reference

REFERENCE = """
import os, sys, torch, warnings
warnings.simplefilter("ignore")
from benchmarks.drawing import made
torch.set_num_threads(1)
model, x = made(sys.argv[1])
library = torch.library.Library("torchvision", "FRAGMENT")  # torchlens wraps these, and none of the models calls them
for name in ("deform_conv2d", "ps_roi_align", "ps_roi_pool", "roi_align", "roi_pool"):
    library.define(name + "(Tensor x) -> Tensor")
import torchlens
start = sum(os.times()[:4])
torchlens.show_model_graph(
    model, x, vis_mode="unrolled", vis_fileformat="svg", vis_save_only=True, vis_outpath=sys.argv[2]
)
assert os.path.getsize(sys.argv[2] + ".svg"), os.listdir(os.path.dirname(sys.argv[2]))
print(sum(os.times()[:4]) - start)
"""


def reference(name: str) -> str:
    """The seconds in which the reference logs and draws the same model, to one SVG."""
    packages = ROOT / ".benchmarks" / "torchlens-2.15.0"
    if not packages.exists():
        return "not installed"
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", ""), str(packages)])
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", REFERENCE, name, f"{folder}/graph"]
        environment = {**os.environ, "PYTHONPATH": path}
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, env=environment, cwd=ROOT)
        except subprocess.TimeoutExpired:
            return f"> {LIMIT} s"
    if done.returncode:
        return f"failed: {done.stderr.strip().splitlines()[-1][:80]}"
    return f"{float(done.stdout.splitlines()[-1]):.1f} s"


# The report


def milliseconds(times: Spread) -> str:
    middle, least, most = (1000 * seconds for seconds in times)
    return _short(middle) if least == most else f"{_short(middle)} ({_short(least)} to {_short(most)})"


def _short(number: float) -> str:
    return f"{number:,.0f} ms" if number >= 10 else f"{number:.1f} ms"


def of(times: list[float]) -> str:
    return f"{median(times):.0f} ms, at most {max(times):.0f}"


def table() -> Iterator[str]:
    found = {name: in_python(name) for name in MODELS}
    pages = {name: in_browser(facts["page"]) for name, (_, facts) in found.items()}
    theirs = {name: reference(name) for name in MODELS}
    yield f"| | {' | '.join(MODELS)} |"
    yield f"|---|{'---:|' * len(MODELS)}"

    def row(title: str, cell: Callable[[str], str]) -> str:
        return f"| {title} | {' | '.join(map(cell, MODELS))} |"

    for fact in ("operations", "modules", "edges", "folds"):
        yield row(fact, lambda name, fact=fact: f"{found[name][1][fact]:,}")
    for job in next(iter(found.values()))[0]:
        yield row(job, lambda name, job=job: milliseconds(found[name][0][job]))
    yield row("torchlens 2.15.0, log and SVG", lambda name: theirs[name])
    yield row("size of the page", lambda name: f"{len(found[name][1]['page'].encode()) / 1000:,.0f} kB")
    yield row("in the browser: first paint", lambda name: f"{pages[name]['firstPaint']:.0f} ms")
    yield row("expanding a module", lambda name: of(pages[name]["expanding"]))
    yield row("search and reveal", lambda name: of(pages[name]["search"]))
    yield row("opening everything", lambda name: f"{pages[name]['open']:.0f} ms")
    yield row("a frame of panning, everything open", lambda name: of(pages[name]["panning"]))


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    lines = list(table())
    dot = subprocess.run(["dot", "-V"], capture_output=True, text=True).stderr.strip()
    (ROOT / "benchmarks" / "drawing.md").write_text(
        "\n".join(
            [
                "# Pictures and pages",
                "",
                f"Made by `python -m benchmarks.drawing` on {time.strftime('%Y-%m-%d')} with fastrec "
                f"{fastrec.__version__}, torch {torch.__version__}, torchvision {version('torchvision')}, "
                f"Python {platform.python_version()}, {dot}, one thread, random weights. CPU time: the median of "
                f"{ROUNDS} rounds with the least and the most, once for what Graphviz and torchlens draw "
                f"(a limit of {LIMIT} s each). In the browser, headless Chromium without a GPU, the clock: the median "
                "and the most, each with painting down to the pixels.",
                "",
                *lines,
                "",
                "`dot` alone lays out everything at once, with all edges; fastrec leaves the far ones of dense graphs "
                "out of that, and draws them over it as straight lines. Every picture was checked to have all nodes.",
                "",
            ]
        )
    )


if __name__ == "__main__":
    main()
