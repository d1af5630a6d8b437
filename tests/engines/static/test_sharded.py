"""Models whose parameters are sharded, with the static engine: in processes of their own, which a fault would kill."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

SHARDED = """
import os, sys, torch, torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from fastrec._torch.collectives import tensor_parallel_modules
from fastrec import Recorder

dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=0, world_size=1)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 16), nn.ReLU())
inputs = [torch.randn(3, 8) for _ in range(6)]
expected = torch.stack([model(x).detach() for x in inputs])
fully_shard(model[0])
fully_shard(model)
assert tensor_parallel_modules(model) == {}  # its parameters are whole while it runs
with Recorder(model, keep_op=sys.argv[2], engine="static") as rec:
    for x in inputs:
        model(x)
kept = rec.recording.stack("1/relu").detach()
print("right" if torch.equal(kept, expected) else "wrong")
sys.stdout.flush()
os._exit(0)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no gloo")
@pytest.mark.parametrize("keep_op", ["*", "as_strided", "relu,view"])
def test_memory_that_fsdp_freed_is_not_read(tmp_path: Path, keep_op: str) -> None:
    code = SHARDED
    if keep_op != "*":
        code = code.replace("keep_op=sys.argv[2]", "keep_op=['relu', *sys.argv[2].split(',')]")
    pytest.importorskip("torch.distributed.fsdp")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "store"), keep_op],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert (done.returncode, done.stdout.strip()) == (0, "right"), done.stderr[-500:]
