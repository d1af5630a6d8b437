"""What may run inside a function is known before it runs."""

import subprocess
import sys
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn, overrides

from fastrec import record
from fastrec.ops import composites
from fastrec.ops.composites import (
    ANYTHING,
    TABLE_PATH,
    TORCH_RELEASE,
    forward_layer_types,
    inner_layer_types,
    qualified_name,
)
from fastrec.ops.facts import op_facts
from tests.helpers import op_calls
from tests.helpers.op_calls import Call, run_opened
from tests.ops.scan_composites import merged

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:FutureWarning")


def check_table(path: Path) -> str:
    # A process of its own, because a name may lead into more modules where more of them are imported.
    command = [sys.executable, "-W", "ignore", "-m", "tests.ops.scan_composites", "--check", path]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT).stderr


def test_the_table_says_all_that_the_source_of_the_installed_torch_says() -> None:
    assert check_table(TABLE_PATH) == ""


@pytest.mark.parametrize("change", [(" softsign", ""), (f'"{TORCH_RELEASE}"', '"2.999.0"')])
def test_a_table_that_lacks_an_op_or_the_release_is_found(change: tuple[str, str], tmp_path: Path) -> None:
    text = TABLE_PATH.read_text()
    assert change[0] in text
    path = tmp_path / "composites.json"
    path.write_text(text.replace(*change))
    assert "composites.json lacks ops that the installed torch may run; run `make composites`" in check_table(path)


VARIANTS = [
    pytest.param(name, call, id=f"{name}-{i}")
    for name, calls in op_calls.COMPOSITES.items()
    for i, call in enumerate(calls)
]


@pytest.mark.parametrize(("name", "call"), VARIANTS)
def test_what_runs_inside_a_composite_was_known_beforehand(name: str, call: Call) -> None:
    for func, seen in run_opened(name, call)[1]:
        assert op_facts(func).composite
        assert set(seen.layer_types) <= inner_layer_types(func)


def test_little_is_expected_inside_that_never_runs() -> None:
    assert inner_layer_types(F.softsign) <= {"add", "abs", "div", "softsign"}
    assert "relu" not in inner_layer_types(F.multi_head_attention_forward)
    assert len(inner_layer_types(F.multi_head_attention_forward)) < 50


def test_functions_handed_to_a_composite_may_run_anything() -> None:
    inside = inner_layer_types(F.triplet_margin_with_distance_loss)
    assert {"cos", "linear", "layernorm", "sub", "scaleddotproductattention", "maxpool2d", "getitem"} <= inside


def test_a_custom_op_registered_later_may_run_in_a_users_composite() -> None:
    assert "latecomer" not in inner_layer_types(smooth)
    library = torch.library.Library("fastrec_late", "DEF")
    library.define("latecomer(Tensor x) -> Tensor")
    assert "latecomer" in inner_layer_types(smooth)
    library._destroy()


@pytest.mark.parametrize("func", [torch.relu, F.gelu, F.relu, F.cross_entropy])
def test_nothing_is_seen_inside_one_op(func: Any) -> None:
    assert inner_layer_types(func) == frozenset()


@pytest.fixture
def other_release(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(composites, "TORCH_RELEASE", "2.999.0")
    composites._table.cache_clear()
    yield
    composites._table.cache_clear()


@pytest.mark.usefixtures("other_release")
def test_in_a_release_of_torch_that_the_table_does_not_know_anything_may_run() -> None:
    assert {"relu", "scaleddotproductattention", "cos"} <= inner_layer_types(F.softsign)
    assert inner_layer_types(F.relu) == frozenset()


def test_a_function_that_took_the_name_of_one_of_torchs_may_run_anything() -> None:
    @wraps(F.softsign)
    def patched(x: torch.Tensor) -> torch.Tensor:
        return F.softsign(x).cos()

    assert qualified_name(patched) == qualified_name(F.softsign)
    assert "cos" in inner_layer_types(patched)


def test_a_users_function_may_run_anything() -> None:
    assert {"cos", "tanh"} <= inner_layer_types(lambda x: x)
    assert {"cos", "tanh"} <= inner_layer_types(nn.Identity())


def test_a_module_of_torchs_runs_little_and_one_of_a_subclass_anything() -> None:
    assert forward_layer_types(nn.Linear) == {"linear"}
    assert "cos" not in forward_layer_types(nn.TransformerEncoderLayer)
    assert "cos" in forward_layer_types(CosineLayer)


class CosineLayer(nn.TransformerEncoderLayer):
    def _ff_block(self, x: torch.Tensor) -> torch.Tensor:
        return super()._ff_block(x).cos()


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:.*has a kept site inside:fastrec.FastrecWarning")
def test_what_a_subclass_runs_in_a_method_of_its_own_is_recorded() -> None:
    layer = CosineLayer(8, 2, 16, batch_first=True).eval()
    assert [r.ctx.site for r in record(layer, torch.randn(2, 3, 8), keep_op="cos")] == ["/cos"]


def test_releases_share_a_table_that_holds_for_all_of_them() -> None:
    other = composites.Composites(
        releases=["2.4.0"],
        inside={qualified_name(F.softsign): "cos", qualified_name(F.tanhshrink): ANYTHING, "gone": "x"},
    )
    both = merged(other)
    assert both.releases == ["2.4.0", TORCH_RELEASE]
    assert both.inside[qualified_name(F.softsign)] == "abs add cos div softsign"
    assert both.inside[qualified_name(F.tanhshrink)] == ANYTHING
    assert both.inside["gone"] == "x"


def smooth(x: torch.Tensor) -> torch.Tensor:
    if overrides.has_torch_function((x,)):
        return overrides.handle_torch_function(smooth, (x,), x)
    return x.tanh().cos()
