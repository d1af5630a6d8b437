"""Values of a model as columns of Ray Data, written to Parquet."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastrec._errors import OptionError, RaggedError

ray = pytest.importorskip("ray")
data = pytest.importorskip("ray.data")

from fastrec.integrations.ray import RecordColumns  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    root = str(Path(__file__).parents[2])
    ray.init(num_cpus=4, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": root}}, log_to_driver=False)
    yield
    ray.shutdown()


def model() -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))


def test_columns_in_parquet_are_those_of_the_model(tmp_path: Path, cluster: None) -> None:
    x = np.random.default_rng(0).normal(size=(1000, 4)).astype(np.float32)
    rows = data.from_items([{"id": i, "x": x[i]} for i in range(len(x))], override_num_blocks=4)
    arguments = (model(), "x", {"hidden": "1", "raw": "0/linear"})
    rows = rows.map_batches(
        RecordColumns,
        fn_constructor_args=arguments,
        fn_constructor_kwargs={"keep_op": "linear", "keep_module": "1"},
        concurrency=2,
        batch_size=250,
    )
    rows.write_parquet(f"{tmp_path}/out")
    table = data.read_parquet(f"{tmp_path}/out").to_pandas().sort_values("id")
    with torch.no_grad():
        raw = model()[0](torch.from_numpy(x))
    assert table["id"].tolist() == list(range(1000))
    np.testing.assert_allclose(np.stack(table["raw"].to_list()), raw.numpy(), atol=1e-6)
    np.testing.assert_allclose(np.stack(table["hidden"].to_list()), raw.tanh().numpy(), atol=1e-6)


def test_bad_columns_are_refused() -> None:
    with pytest.raises(OptionError, match="give a dict name -> key"):
        RecordColumns(model(), "x", {})
    record = RecordColumns(torch.nn.Sequential(torch.nn.Flatten(0), torch.nn.ReLU()), "x", {"flat": "1"})
    with pytest.raises(RaggedError, match=r"for a batch of 5 rows; a column needs one value of shape \[5, \.\.\.\]"):
        record({"x": np.ones((5, 4), np.float32)})
