"""Calls of modules are wrapped while a recorder is open, and in no forked child."""

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fastrec import Recorder
from fastrec.engines.eager.module_calls import MODULE_CALLS, Call, ModuleCalls, has_hooks, pass_on
from tests.engines.programs import run


class Switch:
    def run_unrecorded(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)


def wrapper_that_notes(name: str, notes: list[str]) -> Callable[[Call | None], Call]:
    def make_wrapper(call: Call | None) -> Call:
        def __call__(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            notes.append(name)
            return pass_on(call, module, args, kwargs)

        return __call__

    return make_wrapper


def test_the_last_recorder_is_called_first_and_the_class_is_left_as_it_was() -> None:
    module, original, notes = nn.Identity(), nn.Module.__call__, []
    first, second = wrapper_that_notes("first", notes), wrapper_that_notes("second", notes)
    MODULE_CALLS.add(first, Switch())
    MODULE_CALLS.add(second, Switch())
    assert module(3) == 3 and notes == ["second", "first"]
    assert MODULE_CALLS.original(module, 4) == 4 and len(notes) == 2
    MODULE_CALLS.remove(first)
    assert module(5) == 5 and notes[2:] == ["second"]
    MODULE_CALLS.remove(second)
    MODULE_CALLS.remove(second)
    assert nn.Module.__call__ is original and not MODULE_CALLS.switches()


def test_a_call_that_somebody_else_has_put_in_place_is_called_next() -> None:
    class Own(nn.Identity):
        pass

    notes: list[str] = []
    Own.__call__ = lambda self, x: notes.append("own") or x  # type: ignore[method-assign]
    calls = ModuleCalls(lambda: Own)
    calls.add(wrapper := wrapper_that_notes("wrapper", notes), Switch())
    assert Own()(3) == 3 and notes == ["wrapper", "own"]
    calls.remove(wrapper)
    assert Own()(3) == 3 and notes[2:] == ["own"]


def hooked(register: str, hook: Any) -> nn.Module:
    module = nn.Linear(2, 2)
    getattr(module, register)(hook)
    return module


HOOKED: dict[str, Callable[[], nn.Module]] = {
    "forward": lambda: hooked("register_forward_hook", lambda module, args, out: out + 1),
    "before": lambda: hooked("register_forward_pre_hook", lambda module, args: args[0] + 1),
    "backward": lambda: hooked("register_full_backward_hook", lambda module, grad, out: None),
    "before backward": lambda: hooked("register_full_backward_pre_hook", lambda module, grad: None),
}


@pytest.mark.parametrize("name", HOOKED)
def test_hooks_are_noticed_and_run(name: str) -> None:
    module, x = HOOKED[name](), torch.ones(1, 2)
    assert has_hooks(module) and not has_hooks(nn.Linear(2, 2))
    assert torch.equal(pass_on(None, module, (x,), {}), module(x))


def test_global_hooks_are_noticed_and_run() -> None:
    module, x = nn.Linear(2, 2), torch.ones(1, 2)
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, out: out + 1)
    try:
        assert has_hooks(module)
        assert torch.equal(pass_on(None, module, (x,), {}), module.forward(x) + 1)
    finally:
        handle.remove()
    assert not has_hooks(module)


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
        "this recorder was opened in another process, and a forked child can't write to it; open another recorder "
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


def test_what_another_library_puts_before_the_recorder_stays_after_it() -> None:
    model, x, seen = nn.Sequential(nn.Linear(4, 4)), torch.randn(2, 4), []
    original = nn.Module.__call__
    try:
        with Recorder(model, keep_module="0") as rec:
            ours = nn.Module.__call__

            def theirs(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
                seen.append(module)
                return ours(module, *args, **kwargs)

            nn.Module.__call__ = theirs  # type: ignore[method-assign]
            model(x)
        model(x)
        assert len(seen) == 4 and rec.recording.n_records == 1
        nn.Module.__call__ = ours  # type: ignore[method-assign]
        with Recorder(model, keep_module="0") as again:
            model(x)
        assert again.recording.n_records == 1
    finally:
        nn.Module.__call__ = original  # type: ignore[method-assign]


TORCHS_CALL = nn.Module.__call__


class CallBound(nn.Module):
    __call__ = TORCHS_CALL


class ImplBound(nn.Module):
    __call__ = nn.Module._call_impl


class CallSaved(nn.Module):
    def __call__(self, x: torch.Tensor) -> Any:
        return TORCHS_CALL(self, x)


class ImplCalled(nn.Module):
    def __call__(self, x: torch.Tensor) -> Any:
        return self._call_impl(x)


class SuperCalled(nn.Module):
    def __call__(self, x: torch.Tensor) -> Any:
        return super().__call__(x)


@pytest.mark.parametrize("base", [CallBound, ImplBound, CallSaved, ImplCalled, SuperCalled])
@pytest.mark.parametrize("engine", ["eager", "static"])
def test_a_class_with_a_call_of_its_own_is_one_module_with_all_its_ops(base: type[nn.Module], engine: Any) -> None:
    class Block(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> Any:
            return torch.sigmoid(self.a(x))

    before = dict(vars(base))
    root, child, x = Block(), nn.Sequential(nn.Linear(4, 4), Block()), torch.randn(2, 4)
    with (
        Recorder(root, keep_op=True, keep_module=True, engine=engine) as of_root,
        Recorder(child, keep_op="sigmoid", keep_module="1", engine=engine) as of_child,
        Recorder(child, keep_module="1", engine=engine) as of_modules,
    ):
        for _ in range(5):
            root(x)
            out = child(x)
    assert list(of_root.recording.sites) == ["a/linear", "a", "/sigmoid", ":out"]
    assert list(of_child.recording.sites) == ["1/sigmoid", "1"]
    assert of_root.recording.n_passes == of_child.recording.n_passes == of_modules.recording.n_passes == 5
    assert torch.equal(of_child.recording.stack("1")[4], out)
    assert torch.equal(of_modules.recording.stack("1")[4], out)
    assert dict(vars(base)) == before and base._call_impl is nn.Module._call_impl


def test_a_class_is_left_as_it_was_also_under_another_patch_of_module_calls() -> None:
    model, original = nn.Sequential(CallBound(), nn.ReLU()), nn.Module.__call__
    model[0].forward = torch.sin
    try:
        with Recorder(model, keep_op=True):
            ours = nn.Module.__call__
            nn.Module.__call__ = lambda *args: ours(*args)  # type: ignore[method-assign]
            model(torch.ones(2))
        assert vars(CallBound)["__call__"] is TORCHS_CALL
    finally:
        nn.Module.__call__ = original  # type: ignore[method-assign]
