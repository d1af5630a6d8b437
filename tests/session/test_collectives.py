"""Tensor parallelism on two real ranks: values that are still arriving when they are kept."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PARALLEL = """
import copy, os, sys, warnings, torch, torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
import fastrec
from fastrec import CaptureSpec, Recorder

store, rank, run = sys.argv[1], int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
torch.manual_seed(0)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
    def forward(self, x):
        return self.down(torch.relu(self.up(x)))

plain, inputs = Net(), [torch.randn(3, 8) for _ in range(4)]
expected = torch.stack([plain(x).detach() for x in inputs])
plain_copy = copy.deepcopy(plain)
mesh = init_device_mesh("cpu", (2,))
model = parallelize_module(plain, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
for options in ({"sink": run}, {}, {"capture": CaptureSpec(transform=torch.neg, save_raw=False)}):
    with torch.no_grad(), Recorder(model, keep_module="down", **options) as rec:
        outs = torch.stack([model(x) + 0 for x in inputs])
    if "sink" not in options:
        kept = rec.recording.stack("down") * (-1 if "capture" in options else 1)
        assert type(kept) is torch.Tensor and torch.equal(kept, outs), (kept, outs)
        assert torch.allclose(kept, expected, atol=1e-5)
waiting = CaptureSpec(transform=lambda value: value.wait() + 1, save_raw=True)
with torch.no_grad(), Recorder(model, keep_module="down", capture=waiting) as rec:
    outs = torch.stack([model(x) + 0 for x in inputs])
assert torch.equal(rec.recording.stack("down", part="activation"), outs)
assert torch.equal(rec.recording.stack("down", part="transformed_activation"), outs + 1)
with warnings.catch_warnings(record=True) as caught, torch.no_grad():
    warnings.simplefilter("always", fastrec.FastrecWarning)
    hidden = torch.relu(plain_copy.up(inputs[0]))
    with Recorder(model, keep_op="relu") as rec:
        model(inputs[0])
(message,) = [str(warning.message) for warning in caught if warning.category is fastrec.FastrecWarning]
assert "'up' has the placement Shard(dim=0)" in message and "this rank's part" in message, message
assert torch.allclose(rec.recording.stack("/relu")[0], hidden.chunk(2, 1)[rank], atol=1e-5)
try:
    with Recorder(model, keep_module="down", capture=CaptureSpec(keep_grad=True)) as rec:
        model(inputs[0])
    print("kept")
except fastrec.FastrecError as error:
    print("refused" if "leave keep_grad and save_gradient out" in str(error) else error)
dist.barrier()
if rank == 0:
    both = fastrec.load(run)
    assert list(both.ranks) == [0, 1], both.ranks
    for part in both.ranks.values():
        assert torch.allclose(part.stack("down"), expected, atol=1e-5)
    print([(process.rank, process.world_size) for process in both.processes])
dist.barrier()
sys.stdout.flush()
os._exit(0)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no gloo")
def test_the_output_of_a_row_wise_layer_is_kept_when_it_has_arrived(tmp_path: Path) -> None:
    pytest.importorskip("torch.distributed.tensor.parallel")
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", PARALLEL, f"{tmp_path}/store", str(rank), f"{tmp_path}/run/"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        for rank in range(2)
    ]
    ended = [(process.communicate(timeout=240), process.returncode) for process in ranks]
    assert [code for _, code in ended] == [0, 0], [errors[-800:] for (_, errors), _ in ended]
    assert ended[0][0][0].splitlines() == ["refused", "[(0, 2), (1, 2)]"]
    assert ended[1][0][0].splitlines() == ["refused"]
