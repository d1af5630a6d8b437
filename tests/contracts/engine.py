"""What every engine promises: the same records as the plain reference, and nothing else changed."""

import copy
import io
import pickle
import threading
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastrec import CaptureSpec, Recorder
from fastrec.predicates import every, kind, op
from tests.helpers.models import MODELS, mlp
from tests.helpers.naive import assert_same_events, events_of, naive_events, same_bits, seeded, tensors_in

EVERYTHING = {"keep_op": True, "keep_module": kind("module_enter", "module_exit")}


class EngineContract:
    """Inherit it, and say which engine; the models here run the same ops in every pass."""

    engine: Any = "auto"

    def recorder(self, model: Any, **options: Any) -> Recorder:
        return Recorder(model, engine=self.engine, **options)

    @pytest.fixture(params=MODELS)
    def case(self, request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
        make, shape = MODELS[request.param]
        return make(), torch.randn(shape)

    def run(self, model: nn.Module, x: Tensor, seed: int = 0) -> Any:
        with seeded(seed):
            return model(x.clone())

    def expect(self, model: nn.Module, x: Tensor, seed: int = 0) -> list[Any]:
        return naive_events(model, lambda: self.run(model, x, seed))

    def test_records_what_the_reference_records(self, case: Any) -> None:
        model, x = case
        twin = copy.deepcopy(model)
        with self.recorder(model, **EVERYTHING) as rec:
            for seed in range(3):
                self.run(model, x, seed)
        for seed in range(3):
            assert_same_events(events_of(rec.recording, seed), self.expect(twin, x, seed))

    def test_keeps_ops_of_one_type_as_the_reference_does(self, case: Any) -> None:
        model, x = case
        expected = [event for event in self.expect(copy.deepcopy(model), x) if event.kind == "op"]
        for layer_type in {event.layer_type for event in expected}:
            with self.recorder(copy.deepcopy(model), keep_op=layer_type) as rec:
                self.run(rec._roots[""], x)
            of_type = [event for event in expected if event.layer_type == layer_type]
            assert_same_events(events_of(rec.recording), of_type)

    def test_module_outputs_are_what_forward_hooks_see(self, case: Any) -> None:
        model, x = case
        expected = [event for event in self.expect(copy.deepcopy(model), x) if event.kind == "module_exit"]
        with self.recorder(model, keep_module=True) as rec:
            self.run(model, x)
        found = events_of(rec.recording)
        assert [(e.site, e.label, e.module_stack) for e in found] == [
            (e.site, e.label, e.module_stack) for e in expected
        ]
        assert all(same_bits(a.value, b.value) for a, b in zip(found, expected, strict=True))

    def test_opaque_and_settled_predicates_keep_the_same(self, case: Any) -> None:
        model, x = case
        twin = copy.deepcopy(model)
        with self.recorder(model, **EVERYTHING) as plain:
            self.run(model, x)
        with self.recorder(twin, keep_op=lambda ctx: True, keep_module=lambda ctx: True) as asked:
            self.run(twin, x)
        found, expected = (events_of(rec.recording, inside=True) for rec in (asked, plain))
        assert_same_events(found, expected)

    def test_outputs_gradients_and_random_state_are_those_without_a_recorder(self, case: Any) -> None:
        model, x = case
        twin = copy.deepcopy(model)
        results = []
        for which in (twin, model):
            torch.manual_seed(3)
            given = x.clone().requires_grad_()
            with self.recorder(model, **EVERYTHING) if which is model else nullcontext():
                out = _total(which(given))
                out.backward()
            gradients = [parameter.grad for parameter in which.parameters()]
            results.append([out, given.grad, *gradients, *which.buffers(), torch.get_rng_state(), torch.rand(3)])
        for before, now in zip(*results, strict=True):
            assert (before is None and now is None) or same_bits(before, now)

    def test_leaves_nothing_behind(self) -> None:
        model = mlp()
        call, attributes = nn.Module.__call__, _attributes(model)
        with self.recorder(model, **EVERYTHING):
            model(torch.randn(3, 4))
            assert _attributes(model) == attributes
        assert nn.Module.__call__ is call
        with pytest.raises(ZeroDivisionError), self.recorder(model, **EVERYTHING):
            raise ZeroDivisionError
        assert nn.Module.__call__ is call
        assert torch._C._len_torch_function_stack() == 0
        assert _attributes(model) == attributes

    def test_a_model_can_be_stored_and_copied_inside_of_the_block(self) -> None:
        model, x = mlp(), torch.randn(3, 4)
        with self.recorder(model, keep_op=True, keep_module=True) as rec:
            model(x)
            seen = len(rec.recording)
            copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
            torch.save(model, io.BytesIO())
            torch.save(model.state_dict(), io.BytesIO())
            for each in copies:
                assert same_bits(each(x), model(x))
        assert len(rec.recording) == 3 * seen  # the copies don't report

    def test_values_stay_when_the_loop_writes_into_what_it_gave_and_got(self) -> None:
        model = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Identity())
        buffer = torch.zeros(2, 3)
        with torch.no_grad(), self.recorder(model, **EVERYTHING) as rec:
            for step in range(4):
                buffer.fill_(step)
                out = model(buffer)
                out -= 100
        for step in range(4):
            values = [record.activation for record in rec.recording.iter_pass(step)]
            assert len(values) == 9
            assert all(same_bits(value, torch.full((2, 3), float(step))) for value in values)

    def test_two_recorders_on_one_model_see_the_same(self, case: Any) -> None:
        model, x = case
        twin = copy.deepcopy(model)
        with self.recorder(model, **EVERYTHING) as first, self.recorder(model, **EVERYTHING) as second:
            self.run(model, x)
        with self.recorder(twin, **EVERYTHING) as alone:
            self.run(twin, x)
        for rec in (first, second):
            assert_same_events(*(events_of(each.recording, inside=True) for each in (rec, alone)))

    def test_recorders_close_in_any_order(self) -> None:
        model, x, call = mlp(), torch.randn(3, 4), nn.Module.__call__
        first, second = self.recorder(model, keep_op="tanh"), self.recorder(model, keep_op="relu")
        first.__enter__(), model(x)
        second.__enter__(), model(x)
        first.__exit__(None, None, None), model(x)
        second.__exit__(None, None, None), model(x)
        assert nn.Module.__call__ is call
        assert (first.recording.n_passes, second.recording.n_passes) == (2, 2)
        assert (len(first.recording), len(second.recording)) == (2, 2)

    def test_a_failed_pass_is_left_out_and_the_session_goes_on(self) -> None:
        model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Unflatten(1, (2, 2)), nn.Linear(2, 2))
        with self.recorder(model, keep_op="tanh") as rec:
            model(torch.randn(2, 4))
            for _ in range(3):
                with pytest.raises(RuntimeError, match="shape"):
                    model(torch.randn(2, 3))
            model(torch.randn(5, 4))
        assert [record.ctx.pass_index for record in rec.recording] == [0, 4]

    def test_threads_have_passes_of_their_own(self) -> None:
        model = mlp()
        found: dict[int, Tensor] = {}

        def work(number: int) -> None:
            for _ in range(20):
                model(torch.full((number + 1, 4), float(number)))

        with torch.no_grad():
            for number in range(4):
                found[number] = model(torch.full((number + 1, 4), float(number)))
        with self.recorder(model, keep_module="") as rec:
            threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert rec.recording.n_passes == len(rec.recording) == 80
        assert [record.ctx.pass_index for record in rec.recording] == list(range(80))
        for record in rec.recording:
            assert torch.allclose(record.activation, found[len(record.activation) - 1])

    def test_attached_values_train_the_model(self) -> None:
        model, x = mlp(), torch.randn(3, 4)
        twin = copy.deepcopy(model)
        with self.recorder(model, keep_op=op("tanh"), capture=CaptureSpec(keep_grad=True)) as rec:
            model(x)
            rec.pop().stack("1/tanh")[0].square().sum().backward()
        twin[1](twin[0](x)).square().sum().backward()
        for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
            assert (mine.grad is None and theirs.grad is None) or same_bits(mine.grad, theirs.grad)

    def test_rests_are_asked_at_each_pass(self) -> None:
        model = mlp()
        with self.recorder(model, keep_op=op("tanh") & every(3)) as rec:
            for _ in range(7):
                model(torch.randn(3, 4))
        assert [record.ctx.pass_index for record in rec.recording] == [0, 3, 6]


def _total(out: Any) -> Tensor:
    return torch.stack([leaf.sum() for _, leaf in tensors_in(out)]).sum()


def _attributes(model: nn.Module) -> list[Any]:
    """All that lies on a model: its modules' attributes and hooks, by identity."""
    return [
        (name, key, id(value) if not isinstance(value, dict) else tuple((k, id(v)) for k, v in value.items()))
        for name, module in model.named_modules()
        for key, value in vars(module).items()
    ]
