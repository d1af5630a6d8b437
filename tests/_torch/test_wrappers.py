"""Models inside of parallel wrappers are recorded under their own names."""

import textwrap

import pytest
import torch
from torch import nn
from torch.nn.parallel import DataParallel

from fastrec._torch.wrappers import unwrapped
from tests.engines.programs import run


def test_wrappers_are_taken_off_and_other_modules_left_alone() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    assert unwrapped(DataParallel(DataParallel(model))) is model
    assert unwrapped(model) is model
    named = nn.Module()
    named.module = model
    assert unwrapped(named) is named


DISTRIBUTED = """
import socket
import torch.distributed as dist
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
warnings.simplefilter("ignore")
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
"""


def spread(code: str) -> list[str]:
    """What a program prints that runs as the one process of a group."""
    lines = run(DISTRIBUTED + textwrap.dedent(code) + "\ndist.destroy_process_group()\n")
    return [line for line in lines if not line.startswith("[Gloo]")]  # torch 2.8 tells of its connections


gloo = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")


@gloo
def test_ddp_has_the_addresses_of_the_model_inside() -> None:
    assert spread(
        """
        ddp = nn.parallel.DistributedDataParallel(model)
        plain = record(model, x, keep_op=True, keep_module=True)
        with Recorder(ddp, keep_op=True, keep_module=True) as rec:
            loss = ddp(x).sum()
            loss.backward()
            ddp.module(x)
        sites = [r.ctx.site for r in rec.recording]
        assert sites == 2 * [r.ctx.site for r in plain], sites
        assert all(torch.equal(a.activation, b.activation) for a, b in zip(rec.recording, plain))
        print({r.ctx.entry for r in rec.recording}, model[0].weight.grad is not None)
        nested = nn.ModuleDict({"actor": ddp})
        with Recorder(nested, keep_op="tanh") as rec:
            ddp(x)
        print([r.ctx.site for r in rec.recording])
        """
    ) == ["{''} True", "['actor.1/tanh']"]


@gloo
def test_fsdp_has_the_addresses_of_the_model_inside() -> None:
    assert spread(
        """
        from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
        expected = model(x)
        sharded = FSDP(nn.Sequential(FSDP(model[0], device_id=torch.device("cpu")), model[1]),
                       device_id=torch.device("cpu"))
        with Recorder(sharded, keep_op="tanh", keep_module=["0", "1", ""]) as rec:
            out = sharded(x)
            out.sum().backward()
        print([r.ctx.site for r in rec.recording], torch.allclose(out, expected))
        """
    ) == ["['0', '1/tanh', '1', ':out'] True"]


@gloo
def test_fully_shard_has_the_addresses_of_the_model() -> None:
    assert spread(
        """
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
        expected = model(x)
        mesh = init_device_mesh("cpu", (1,))
        fully_shard(model[0], mesh=mesh)
        fully_shard(model, mesh=mesh)
        with Recorder(model, keep_op=["linear", "tanh"], keep_module=["0", ""]) as rec:
            out = model(x)
            out.sum().backward()
        print([r.ctx.site for r in rec.recording], torch.allclose(out, expected), rec.recording["0"][0].ctx.module_type)
        """
    ) == ["['0/linear', '0', '1/tanh', ':out'] True FSDPLinear"]


@gloo
def test_sharded_values_are_refused_where_they_are_kept() -> None:
    assert spread(
        """
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor import Shard, distribute_tensor
        value = distribute_tensor(x, init_device_mesh("cpu", (1,)), [Shard(0)])
        class Gives(nn.Module):
            def forward(self, x):
                return value
        try:
            record(Gives(), x, keep_module="")
        except FastrecError as error:
            print(type(error).__name__, "DTensor" in str(error))
        """
    ) == ["UnsupportedTensorError True"]
