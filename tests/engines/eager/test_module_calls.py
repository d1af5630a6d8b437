"""Forked children, and models that are spread over processes."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).parent.parent

PRELUDE = """
import os, sys, warnings
import torch
from torch import nn
from fastrec import FastrecError, Recorder, record
from fastrec.predicates import module_type
torch.set_num_threads(1)
model = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
x = torch.randn(2, 4)
"""


def run(code: str) -> list[str]:
    """What a program prints that is run by an interpreter of its own."""
    script = PRELUDE + textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-W", "error::fastrec.FastrecWarning", "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=TESTS,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


@forks
def test_a_forked_child_records_nothing_and_its_parent_goes_on() -> None:
    assert run(
        """
        original = nn.Module.__call__
        with Recorder(model, keep_op="tanh") as rec:
            model(x)
            child = os.fork()
            if not child:
                assert nn.Module.__call__ is original
                model(x)
                for use in (rec.step, rec.pop, lambda: rec.log(x), lambda: rec.region().__enter__()):
                    try:
                        use()
                    except FastrecError as error:
                        print(error, flush=True)
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
            model(x)
        print(rec.recording.n_passes)
        """
    ) == [
        "this recorder was opened in another process, and a forked child can't write to it; open a recorder of its own "
        "in the child"
    ] * 4 + ["2"]


@forks
def test_a_child_may_leave_the_block_and_record_by_itself() -> None:
    assert run(
        """
        with Recorder(model, keep_op="tanh") as rec:
            model(x)
            child = os.fork()
            if child:
                assert os.waitpid(child, 0)[1] == 0
                model(x)
        if not child:
            with Recorder(model, keep_op="tanh") as own:
                model(x)
            print("child", own.recording.n_passes, flush=True)
            os._exit(0)
        print("parent", rec.recording.n_passes)
        """
    ) == ["child 1", "parent 2"]


@forks
def test_a_fork_inside_of_a_pass_leaves_the_pass_to_the_parent() -> None:
    assert run(
        """
        class Forks(nn.Module):
            def __init__(self):
                super().__init__()
                self.body = model
            def forward(self, x):
                x = self.body(x)
                self.child = os.fork()
                return self.body(x)
        forks = Forks()
        with Recorder(forks, keep_op="tanh") as rec:
            forks(x)
            if not forks.child:
                model(x)
                assert len(rec._ram.source().records()) == 0
                os._exit(0)
            assert os.waitpid(forks.child, 0)[1] == 0
            model(x)
        print(len(rec.recording), rec.recording.n_passes)
        """
    ) == ["3 2"]


@forks
@pytest.mark.filterwarnings("ignore:This process")
def test_workers_of_a_data_loader_do_not_record() -> None:
    assert run(
        """
        class Data(torch.utils.data.Dataset):
            def __len__(self):
                return 4
            def __getitem__(self, i):
                with torch.no_grad():
                    return model(x)[0] + i
        with Recorder(model, keep_op="tanh") as rec:
            for batch in torch.utils.data.DataLoader(Data(), 2, num_workers=1, multiprocessing_context="fork"):
                model(batch)
        print(rec.recording.n_passes)
        """
    ) == ["2"]


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
    return run(DISTRIBUTED + textwrap.dedent(code) + "\ndist.destroy_process_group()\n")


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
