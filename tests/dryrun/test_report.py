"""What a dry run shows: the tree, the table, the frame, the timeline."""

import time
import xml.etree.ElementTree as ElementTree
from typing import Any

import pandas
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastrec
from fastrec import CaptureSpec, DryRun, RecordContext, dry_run
from fastrec._errors import OptionError
from fastrec.predicates import entry, every, first, op, shape
from tests.helpers.models import MODELS


def test_the_tree_shows_modules_ops_and_what_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
            self.act = nn.ReLU()

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            x = self.act(self.act(self.block(x))[:1] / 2)
            return {"out": x, "half": x.half()}

    def keep_op(ctx: RecordContext) -> Any:
        if ctx.layer_type == "batchnorm":
            raise KeyError("mean")
        return ctx.layer_type in ("relu", "linear") and ctx.label != "relu_1"

    def keep_module(ctx: RecordContext) -> Any:
        return CaptureSpec(dtype=torch.float16) if ctx.site in ("block:in[0]", ":out.half", "block") else None

    dry = dry_run(Net().eval(), torch.zeros(2, 4), keep_op=keep_op, keep_module=keep_module)
    assert dry.print_tree() is None
    assert capsys.readouterr().out == dry.tree() + "\n"
    assert dry.tree() == (
        ":in[0] (input)                               2x4 float32             32 B\n"
        "Net                               28 params\n"
        "├─ block: Sequential              28 params  2x4 float32             32 B  ● 16 B  dtype=torch.float16\n"
        "│  ├─ in[0]                                  2x4 float32             32 B  ● 16 B  dtype=torch.float16\n"
        "│  ├─ 0: Linear                   20 params  2x4 float32             32 B\n"
        "│  │  └─ linear                              2x4 float32             32 B  ● 32 B\n"
        "│  └─ 1: BatchNorm1d              8 params   2x4 float32             32 B\n"
        "│     ├─ running_mean:buffer                 4 float32               16 B\n"
        "│     ├─ running_var:buffer                  4 float32               16 B\n"
        "│     └─ batchnorm                           2x4 float32             32 B  ✗ KeyError: 'mean'\n"
        "├─ act: ReLU                  x2             2x4 float32 and 1 more  48 B\n"
        "│  └─ relu                    x2             2x4 float32 and 1 more  48 B  ● 16 B  1 of 2\n"
        "├─ getitem                                   1x4 float32             16 B\n"
        "├─ div                                       1x4 float32             16 B\n"
        "├─ half                                      1x4 float16             8 B\n"
        "├─ out.out                                   1x4 float32             16 B\n"
        "└─ out.half                                  1x4 float16             8 B   ● 8 B  dtype=torch.float16\n"
        "5 of 23 events kept: 88 B per pass, 85.9 KiB per 1,000 passes\n"
        "errors at 1 site, the first at block.1/batchnorm: KeyError: 'mean'"
    )

    assert dry.tree(1).splitlines()[2:4] == [
        "├─ block: Sequential      28 params  2x4 float32             32 B  ● 64 B at 3 sites  ✗ 1 error",
        "├─ act: ReLU          x2             2x4 float32 and 1 more  48 B  ● 16 B",
    ]


def repeats() -> nn.Module:
    """Four blocks in a row, then a pair three times."""
    blocks = [nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(4)]
    pairs = [layer for _ in range(3) for layer in (nn.Linear(4, 4), nn.Tanh())]
    return nn.Sequential(nn.Sequential(*blocks), nn.Sequential(*pairs))


def test_modules_that_repeat_each_other_are_one_branch_with_what_is_kept_of_each() -> None:
    dry = dry_run(repeats(), torch.zeros(2, 4), keep_op="tanh", keep_module=[f"0.{n}" for n in range(4)])
    assert dry.tree(2) == (
        ":in[0] (input)                             2x4 float32  32 B\n"
        "Sequential                     140 params  2x4 float32  32 B\n"
        "├─ 0: Sequential               80 params   2x4 float32  32 B\n"
        "│  └─ 0 to 3: Sequential x4    20 params   2x4 float32  32 B  ● 32 B each\n"
        "└─ 1: Sequential               60 params   2x4 float32  32 B\n"
        "   └─ 0 to 5: Linear, Tanh x3  20 params                      ● 32 B each\n"
        "7 of 57 events kept: 224 B per pass, 218.8 KiB per 1,000 passes"
    )
    assert dry.tree(2, fold_repeats=False).count("● 32 B") == 7


def test_modules_of_which_different_things_are_kept_are_not_one_branch() -> None:
    dry = dry_run(repeats(), torch.zeros(2, 4), keep_module="0.2")
    names = [line.partition(":")[0].strip("│├└─ ") for line in dry.tree(2).splitlines()]
    assert names[3:7] == ["0", "1", "2", "3"] and names[8] == "0 to 5"


@pytest.mark.parametrize("depth", [0, -1, 1.5, True, "2"])
def test_a_depth_that_does_not_exist_is_refused(depth: Any) -> None:
    with pytest.raises(OptionError, match=r"depth=.*: give a whole number from 1 up, or None for all levels"):
        dry_run(nn.ReLU(), torch.zeros(2)).print_tree(depth)


def test_composites_are_opened_in_the_tree() -> None:
    class Attends(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.gumbel_softmax(x)

    lines = dry_run(Attends(), torch.zeros(2, 4), keep_op="gumbelsoftmax").tree().splitlines()
    assert lines[2].split() == ["└─", "gumbel_softmax", "2x4", "float32", "32", "B", "●", "32", "B"]
    assert lines[3].startswith("   ├─ emptylike")
    assert lines[-2].startswith("   └─ softmax")


def test_the_summary_has_one_line_per_site_and_the_whole() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh())
    lines = dry_run(model, torch.zeros(2, 4), keep_op=op("tanh").with_(dtype=torch.float16)).summary().splitlines()
    assert lines == [
        "site      kind          fires  value        bytes per pass  kept per 1,000  kept",
        ":in[0]    input         1      2x4 float32  32 B",
        ":in[0]    module_enter  1      2x4 float32  32 B",
        "0:in[0]   module_enter  1      2x4 float32  32 B",
        "0/linear  op            1      2x8 float32  64 B",
        "0         module_exit   1      2x8 float32  64 B",
        "1:in[0]   module_enter  1      2x8 float32  64 B",
        "1/tanh    op            1      2x8 float32  64 B            31.2 KiB        ● 32 B  dtype=torch.float16",
        "1         module_exit   1      2x8 float32  64 B",
        ":out      module_exit   1      2x8 float32  64 B",
        "1 of 9 events kept: 32 B per pass, 31.2 KiB per 1,000 passes",
    ]


@pytest.mark.parametrize(
    ("keep_op", "kept"),
    [
        ("tanh", "62.5 KiB"),
        (op("tanh") & every(10), "6.2 KiB"),
        (op("tanh") & ~every(4), "46.9 KiB"),
        (op("tanh") & first(7), "448 B"),
        (op("tanh") & every(2) & shape(2, 8), "31.2 KiB"),
        (op("tanh") & every(2) & shape(3, 8), "0 B"),
        (op("tanh") & every(5) & entry("other"), "0 B"),
        (op("tanh") & (lambda ctx: ctx.entry_pass % 2 == 0), "62.5 KiB"),
    ],
    ids=str,
)
def test_bytes_per_thousand_passes_follow_predicates_that_count_passes(keep_op: Any, kept: str) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh())
    dry = dry_run(model, torch.zeros(2, 4), keep_op=keep_op)
    assert dry.summary().endswith(f"per pass, {kept} per 1,000 passes")


def test_what_is_kept_with_several_captures_is_counted_by_each() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh())
    half = op("tanh") & every(2) | (op("tanh") & every(5)).with_(dtype=torch.float16)
    dry = dry_run(model, torch.zeros(2, 4), keep_op=half)
    assert f"{(500 * 64 + 100 * 32) / 1024:.1f} KiB per 1,000 passes" in dry.summary()


def test_values_of_other_shapes_are_counted_apart() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4), nn.Tanh())
    dry = dry_run(model, torch.zeros(2, 4), keep_op=op("tanh") & every(2) & shape(2, 8))
    assert f"{500 * 64 / 1024:.1f} KiB per 1,000 passes" in dry.summary()


def test_the_frame_has_a_row_per_event() -> None:
    def keep_op(ctx: RecordContext) -> Any:
        if ctx.layer_type == "linear":
            raise ValueError("<no>")
        return CaptureSpec(dtype=torch.float16)

    dry = dry_run(nn.Sequential(nn.Linear(4, 8), nn.Tanh()), torch.zeros(2, 4), keep_op=keep_op)
    frame = dry.to_pandas()
    recorded = fastrec.record(nn.Linear(4, 8), torch.zeros(2, 4), keep_op=True).to_pandas()
    assert set(recorded.columns) - set(frame.columns) == {"step", "sample_id"}
    assert set(frame.columns) - set(recorded.columns) == {"value_bytes", "kept", "kept_bytes", "capture", "error"}
    assert list(frame["site"]) == [ctx.site for ctx in dry.contexts]
    assert list(frame["kept_bytes"]) == list(dry.sizes)
    row = frame.set_index("site").loc["1/tanh"]
    assert (row["kept"], row["kept_bytes"], row["value_bytes"]) == (True, 32, 64)
    assert row["capture"] == "CaptureSpec(dtype=torch.float16)"
    assert (row["tensor_shape"], row["tensor_dtype"], row["label"]) == ((2, 8), "float32", "tanh_1")
    assert pandas.isna(row["error"])
    assert frame.set_index("site").loc["0/linear"]["error"] == "ValueError: <no>"


class Odd(nn.Module):
    """Names that mean something in HTML, where a user may put them."""

    def __init__(self) -> None:
        super().__init__()
        self.child = type("<script>&'\"", (nn.ReLU,), {})()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"<b>&\"'</b>": self.child(x)}


def assert_well_formed(html: str) -> ElementTree.Element:
    assert "<script" not in html and "href" not in html and "src=" not in html
    return ElementTree.fromstring(f"<div>{html}</div>")


def fails_oddly(ctx: RecordContext) -> bool:
    raise ValueError("<i>&\"'</i>")


def test_html_is_escaped_and_whole() -> None:
    dry = dry_run(Odd(), torch.zeros(2, 4), keep_op=fails_oddly, keep_module=lambda ctx: True)
    for html in (dry.timeline_html(), dry._repr_html_()):
        page = assert_well_formed(html)
        text = "".join(page.itertext())
        assert "child: <script>&'\"" in text
        assert ":out['<b>&\"\\'</b>']" in text
        assert "ValueError: <i>&\"'</i>" in text


@pytest.mark.filterwarnings("ignore:keep_op:fastrec.FastrecWarning")  # not every model has a relu
@pytest.mark.parametrize("name", MODELS)
def test_every_model_can_be_shown(name: str) -> None:
    make, input_shape = MODELS[name]
    with torch.no_grad():
        dry = dry_run(make(), torch.randn(input_shape), keep_op="relu")
    assert_well_formed(dry._repr_html_())
    assert len(dry.to_pandas()) == len(dry.contexts)
    outputs = {ctx.module_type for ctx in dry.contexts}
    assert all(module_type in dry.tree() for module_type in outputs)
    assert_all_sites_in_summary(dry)


def assert_all_sites_in_summary(dry: DryRun) -> None:
    sites = {line.split("  ")[0] for line in dry.summary().splitlines()[1:]}
    assert {ctx.site for ctx in dry.contexts} <= sites


def rects_of(html: str) -> dict[str, tuple[float, float, float, str]]:
    rects = {}
    for group in assert_well_formed(html).iter("{http://www.w3.org/2000/svg}g"):
        title, rect = group[0], group[1]
        x, y, width = (float(rect.attrib[name]) for name in ("x", "y", "width"))
        rects[(title.text or "").partition(" (")[0]] = x, y, x + width, rect.attrib["fill"]
    return rects


def test_the_timeline_nests_modules_and_marks_what_is_kept() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh())
    rects = rects_of(dry_run(model, torch.zeros(2, 4), keep_op="tanh", keep_module="0").timeline_html())
    root, linear, tanh_op, tanh_module = (rects[key] for key in ("Sequential", "0: Linear", "tanh_1", "1: Tanh"))
    assert root[1] < linear[1] < tanh_op[1]
    assert root[0] < linear[0] < linear[2] == tanh_module[0] < tanh_op[0] < tanh_op[2] < tanh_module[2] < root[2]
    assert tanh_op[3] == rects["0:1"][3] != rects["linear_1"][3]


def test_a_composite_spans_its_inside_in_the_timeline() -> None:
    class Samples(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.gumbel_softmax(x)

    rects = rects_of(dry_run(Samples(), torch.zeros(2, 4)).timeline_html())
    whole = rects["gumbelsoftmax_1"]
    inside = [rect for label, rect in rects.items() if label.startswith("gumbelsoftmax_1/")]
    assert len(inside) > 3
    assert all(whole[0] <= start and stop <= whole[2] and y > whole[1] for start, y, stop, _ in inside)


def test_a_thousand_ops_are_shown_quickly() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(250))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = torch.relu(layer(x)) + 1 - x
            return x

    dry = dry_run(Deep(), torch.zeros(2, 8), keep_op=op("relu") & every(3) & shape(2, 8))
    assert len(dry.contexts) > 1000
    began = time.process_time()
    dry.tree()
    dry.summary()
    assert time.process_time() - began < 1
