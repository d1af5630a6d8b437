"""Sessions: what is recorded of a loop that does not know of it, and what the user says about it."""

import random
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastrec
from fastrec import CaptureSpec, FastrecWarning, Recorder, record
from fastrec._errors import PredicateError
from fastrec.predicates import after, entry, every, first, grad_enabled, kind, module, module_type, op, phase
from fastrec.sinks import RAMSink
from tests.helpers.models import mlp
from tests.helpers.naive import same_bits


@pytest.fixture
def model() -> nn.Module:
    return mlp()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 4)


class Net(nn.Module):
    """Two convolutions with activations, and a ReLU that comes after none."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.ReLU())
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


IMAGE = torch.randn(1, 1, 6, 6)


def seeds_predicate(ctx: Any) -> bool:
    return ctx.kind == "op" and ctx.layer_type == "relu"


def after_convolutions(ctx: Any) -> Any:
    return ctx.layer_type == "relu" and ctx.recent_ops and ctx.recent_ops[-1].layer_type == "conv2d" or None


def of_linears(ctx: Any) -> bool:
    return ctx.kind == "module_exit" and ctx.module_type == "Linear"


@pytest.mark.parametrize(
    ("options", "sites"),
    [
        ({"keep_op": seeds_predicate}, ["features.1/relu", "features.3/relu", "head.2/relu"]),
        ({"keep_op": after_convolutions}, ["features.1/relu", "features.3/relu"]),
        ({"keep_op": op("relu") & after("conv2d")}, ["features.1/relu", "features.3/relu"]),
        ({"keep_op": op("relu") & after("conv2d", within=3)}, ["features.1/relu", "features.3/relu"]),
        ({"keep_op": op("relu") & after("conv2d", within=4)}, ["features.1/relu", "features.3/relu", "head.2/relu"]),
        ({"keep_module": of_linears}, ["head.1", "head.3"]),
        ({"keep_module": module_type(nn.Linear)}, ["head.1", "head.3"]),
        ({"keep_module": "features.*"}, ["features.0", "features.1", "features.2", "features.3"]),
    ],
)
def test_the_predicates_of_the_papers_run_unchanged(options: Any, sites: list[str]) -> None:
    model = Net()
    recording = record(model, IMAGE, **options)
    assert [r.ctx.site for r in recording] == sites
    if "keep_module" in options:
        values: dict[str, Tensor] = {}
        for name, part in model.named_modules():
            part.register_forward_hook(lambda m, a, out, name=name: values.__setitem__(name, out))
        model(IMAGE)
        assert all(torch.equal(r.activation, values[r.ctx.site]) for r in recording)


RETURNS: dict[str, tuple[Any, bool]] = {
    "true": (True, True),
    "false": (False, False),
    "none": (None, False),
    "numpy true": (np.bool_(True), True),
    "numpy false": (np.bool_(False), False),
    "a spec": (CaptureSpec(dtype=torch.float64), True),
    "a spec without anything": (CaptureSpec(save_activation=False, save_metadata=False), False),
}


@pytest.mark.parametrize("name", RETURNS)
def test_what_predicates_may_return(name: str, model: nn.Module, x: Tensor) -> None:
    answer, kept = RETURNS[name]
    recording = record(model, x, keep_op=lambda ctx: answer, keep_module=lambda ctx: answer)
    assert (len(recording) > 0) is kept
    if name == "a spec":
        assert {r.activation.dtype for r in recording} == {torch.float64}


@pytest.mark.parametrize("answer", [1, 0, "relu", "", (), object, torch.tensor(True), np.array([True])])
def test_other_answers_are_errors_that_show_them(answer: Any, model: nn.Module, x: Tensor) -> None:
    with pytest.raises(ValueError, match=r"failed at 'linear_1' \(op at '0/linear', pass 0\).*it has to return True"):
        record(model, x, keep_op=lambda ctx: answer)


def test_a_spec_without_the_tensor_keeps_the_context(model: nn.Module, x: Tensor) -> None:
    recording = record(model, x, keep_op="tanh", capture=CaptureSpec(save_activation=False))
    assert recording[0].activation is None and recording[0].ctx.tensor_shape == (3, 8)


def test_whoever_calls_the_model_is_recorded(model: nn.Module, x: Tensor) -> None:
    class Framework:
        def __init__(self, policy: nn.Module) -> None:
            self.policy = policy

        def learn(self, steps: int) -> None:
            for _ in range(steps):
                self.policy(x)

    framework = Framework(model)
    framework.learn(2)
    with Recorder(model, keep_op="tanh") as rec:
        framework.learn(3)
    framework.learn(2)
    assert rec.recording.n_passes == len(rec.recording) == 3


def test_log_gives_the_output_and_a_sample_id(model: nn.Module, x: Tensor) -> None:
    with Recorder(model, keep_op="tanh") as rec:
        out = rec.log(x, sample_id="a")
        rec.log((x,), sample_id=7)
        rec.log([], {"input": x})
        model(x)
    assert same_bits(out, model(x))
    assert [r.ctx.sample_id for r in rec.recording] == ["a", 7, None, None]


def test_log_names_the_root_where_there_are_several(model: nn.Module, x: Tensor) -> None:
    with Recorder({"actor": model, "critic": nn.Linear(4, 1)}, keep_op="linear") as rec:
        assert rec.log(x, root="critic").shape == (3, 1)
        with pytest.raises(ValueError, match="there are several roots; say which: root='actor' or 'critic'"):
            rec.log(x)
        with pytest.raises(ValueError, match="there is no root 'critc'; did you mean 'critic'"):
            rec.log(x, root="critc")
    assert [r.ctx.site for r in rec.recording] == ["critic/linear"]


def test_a_failed_log_leaves_no_sample_id_behind(model: nn.Module, x: Tensor) -> None:
    with Recorder(model, keep_op="tanh") as rec:
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            rec.log(torch.ones(2, 9), sample_id="bad")
        model(x)
    assert [r.ctx.sample_id for r in rec.recording] == [None]


def test_steps_close_the_passes_since_the_last_mark(model: nn.Module, x: Tensor) -> None:
    with Recorder(model, keep_op="tanh") as rec:
        for step in range(3):
            for _ in range(step):
                model(x)
            rec.step(reward=float(step), terminated=np.array([False, True]))
        model(x)
    assert [r.ctx.step for r in rec.recording] == [1, 2, 2, 3]
    assert rec.recording.select(steps=2).n_records == 2
    assert rec.recording.steps["reward"].tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("value", ["text", None, np.zeros((2, 2)), {"a": 1}, [1, "a"]])
def test_step_columns_are_numbers(value: Any, model: nn.Module) -> None:
    with (
        pytest.raises(ValueError, match="give a number, a bool, or an array|one per environment"),
        Recorder(model, keep_op="tanh") as rec,
    ):
        rec.step(reward=value)


def test_phases_have_steps_of_their_own(model: nn.Module, x: Tensor) -> None:
    with Recorder(model, keep_op=op("tanh") & ~phase("warmup")) as rec:
        with rec.phase("warmup"):
            model(x)
        for _ in range(2):
            with rec.phase("rollout"):
                for _ in range(2):
                    model(x)
                    rec.step()
                with rec.phase("eval"):
                    model(x)
                model(x)
            with rec.phase("train"):
                model(x)
    facts = [(r.ctx.phase, r.ctx.step) for r in rec.recording]
    assert facts == [
        *(("rollout", 0), ("rollout", 1), ("eval", None), ("rollout", 2), ("train", None)),
        *(("rollout", 2), ("rollout", 3), ("eval", None), ("rollout", 4), ("train", None)),
    ]
    assert len(rec.recording.select(phase=["eval", "train"])) == 4


def test_a_phase_ends_with_its_block_also_after_an_exception(model: nn.Module, x: Tensor) -> None:
    with Recorder(model, keep_op="tanh") as rec:
        with pytest.raises(ZeroDivisionError), rec.phase("train"):
            raise ZeroDivisionError
        model(x)
        with pytest.raises(ZeroDivisionError), rec.pause():
            raise ZeroDivisionError
        model(x)
        with pytest.raises(ValueError, match=r"phase\(3\): give a name"), rec.phase(3):
            pass
    assert [r.ctx.phase for r in rec.recording] == ["", ""]


def test_what_is_paused_is_no_pass(model: nn.Module, x: Tensor) -> None:
    with Recorder(model, keep_op=["tanh", "add"]) as rec:
        model(x)
        with rec.pause(), rec.pause():
            model(x)
            with rec.region("act"):
                model(x)
                x + 1
        with rec.region("act"):
            model(x) + 1
    assert len(rec.recording["add_1"]) == 1
    assert [r.ctx.pass_index for r in rec.recording if r.ctx.layer_type == "tanh"] == [0, 1]


def test_a_pause_inside_of_a_pass_waits_for_the_next(model: nn.Module, x: Tensor) -> None:
    with Recorder(model, keep_op="tanh") as rec, rec.region():
        with rec.pause():
            model(x)
        model(x)
    assert len(rec.recording) == 2


def test_a_recording_is_readable_inside_of_the_block(model: nn.Module, x: Tensor) -> None:
    with Recorder(model, keep_op="tanh") as rec:
        assert len(rec.recording) == 0
        seen: list[int] = []
        handle = model[2].register_forward_hook(lambda *_: seen.append(len(rec.recording)))
        for n in range(3):
            model(x)
            assert len(rec.recording) == n + 1
        handle.remove()
    assert seen == [0, 1, 2]  # a pass appears when it ends
    assert len(rec.recording) == 3


def test_pop_hands_over_and_forgets(model: nn.Module, x: Tensor) -> None:
    with Recorder(model, keep_op="tanh") as rec:
        model(x), model(x)
        popped = rec.pop()
        assert (len(popped), len(rec.recording), len(rec.pop())) == (2, 0, 0)
        model(x)
    assert [r.ctx.pass_index for r in rec.recording] == [2]
    assert popped.stack("1/tanh").shape == (2, 3, 8)


def test_retain_keeps_the_last_passes(model: nn.Module, x: Tensor) -> None:
    with Recorder(model, keep_op=["tanh", "relu"], retain=2) as rec:
        for n in range(9):
            model(x * n)
            assert [r.ctx.pass_index for r in rec.recording["1/tanh"]] == list(range(max(0, n - 1), n + 1))
    assert torch.equal(rec.recording.stack("1/tanh")[1], model[1](model[0](x * 8)))


def test_retain_keeps_the_last_steps(model: nn.Module, x: Tensor) -> None:
    with Recorder(model, keep_op="tanh", retain=2) as rec:
        for n in range(9):
            model(x), model(x)
            rec.step(reward=float(n))
    assert [r.ctx.step for r in rec.recording] == [7, 7, 8, 8]
    assert rec.recording.steps["reward"].tolist() == [7.0, 8.0]


def test_a_random_seed_is_set_for_logged_calls_alone() -> None:
    model, x = nn.Dropout(0.5), torch.ones(100)

    def state() -> list[Any]:
        return [torch.rand(1).item(), np.random.rand(), random.random()]

    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    expected = state()
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    with Recorder(model, keep_module="", random_seed=5) as rec:
        a, b = rec.log(x), rec.log(x)
        assert state() == expected
        c = model(x)
    torch.manual_seed(5)
    assert same_bits(a, b) and same_bits(a, model(x)) and not torch.equal(a, c)
    assert same_bits(record(model, x, keep_module="", random_seed=5)[0].activation, a)
    assert same_bits(record(model, call=lambda: model(x), keep_module="", random_seed=5)[0].activation, a)


def test_every_and_first_count_the_passes_of_an_entry(model: nn.Module, x: Tensor) -> None:
    keep = (op("tanh") & every(3)) | (op("relu") & first(2) & entry("")) | (op("linear") & entry("4"))
    with Recorder(model, keep_op=keep) as rec:
        for _ in range(5):
            model(x)
            model[4](torch.ones(1, 8))
    facts = [(r.ctx.layer_type, r.ctx.pass_index, r.ctx.entry, r.ctx.entry_pass) for r in rec.recording]
    assert [t for t in facts if t[0] == "tanh"] == [("tanh", 0, "", 0), ("tanh", 6, "", 3)]
    assert [t for t in facts if t[0] == "relu"] == [("relu", 0, "", 0), ("relu", 2, "", 1)]
    assert [t[1:] for t in facts if t[0] == "linear"] == [(2 * n + 1, "4", n) for n in range(5)]


def test_gradient_modes_separate_rollouts_from_training(model: nn.Module, x: Tensor) -> None:
    with Recorder(model, keep_op=op("tanh") & grad_enabled() | op("relu") & ~grad_enabled()) as rec:
        with torch.no_grad():
            model(x)
        model(x)
    assert [(r.ctx.layer_type, r.ctx.grad_enabled) for r in rec.recording] == [("relu", False), ("tanh", True)]
    assert len(rec.recording.select(grad=True)) == 1


def test_inputs_and_buffers_become_events_when_asked(x: Tensor) -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.ReLU()).eval()
    with Recorder(model, keep_op=kind("input", "buffer", "op"), include_source_events=True) as rec:
        model(x)
    facts = [(r.ctx.kind, r.ctx.site, r.ctx.label) for r in rec.recording]
    assert facts == [
        ("input", ":in[0]", "input_1"),
        ("buffer", "0.running_mean:buffer", "buffer_1"),
        ("buffer", "0.running_var:buffer", "buffer_2"),
        ("op", "0/batchnorm", "batchnorm_1"),
        ("op", "1/relu", "relu_1"),
    ]
    assert same_bits(rec.recording[0].activation, x) and same_bits(rec.recording[2].activation, torch.ones(4))


def test_parents_are_the_labels_of_what_was_read(x: Tensor) -> None:
    class Joins(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            a, b = x.relu(), y.tanh()
            a += b
            first, second = (a * 2).split(2, dim=1)
            return first + second + a.sum()

    keep = kind("op", "input")
    with Recorder(Joins(), keep_op=keep, keep_module=True, track_parents=True, include_source_events=True) as rec:
        rec.log((x, x.clone()))
    parents = {r.ctx.label: r.ctx.parent_labels for r in rec.recording}
    assert parents == {
        "input_1": (),
        "input_2": (),
        "relu_1": ("input_1",),
        "tanh_1": ("input_2",),
        "add_1": ("relu_1", "tanh_1"),
        "mul_1": ("add_1",),
        "split_1[0]": ("mul_1",),
        "split_1[1]": ("mul_1",),
        "add_2": ("split_1[0]", "split_1[1]"),
        "sum_1": ("add_1",),
        "add_3": ("add_2", "sum_1"),
        ":out:1": ("add_3",),
    }
    with pytest.raises(AttributeError, match="track_parents=True"):
        _ = record(Joins(), (x, x), keep_op=True)[0].ctx.parent_labels


def test_recent_events_are_bounded_and_cleared(model: nn.Module, x: Tensor) -> None:
    with Recorder(model, keep_op=True, history_size=3) as rec:
        model(x), model(x)
    for number in range(2):
        labels = [[e.label for e in r.ctx.recent_ops] for r in rec.recording.iter_pass(number)]
        assert labels == [
            *([], ["linear_1"], ["linear_1", "tanh_1"], ["linear_1", "tanh_1", "linear_2"]),
            ["tanh_1", "linear_2", "relu_1"],
        ]
    assert [e.label for e in rec.recording[2].ctx.recent_events] == ["1:in:1", "tanh_1", "1:1"] or (
        len(rec.recording[2].ctx.recent_events) == 3
    )


def test_a_kept_context_never_changes(model: nn.Module, x: Tensor) -> None:
    kept: list[Any] = []
    with Recorder(model, keep_op=lambda ctx: kept.append(ctx)) as rec:
        model(x)
        before = [(repr(c), c.recent_ops, c.step, c.pass_index, c.label, c.module_stack) for c in kept]
        seen = len(kept)
        model(x * 2)
        rec.step()
    assert [(repr(c), c.recent_ops, c.step, c.pass_index, c.label, c.module_stack) for c in kept[:seen]] == before
    assert all("\n" not in repr(c) and len(repr(c)) < 200 for c in kept)


def test_several_sinks_each_get_every_record(model: nn.Module, x: Tensor) -> None:
    sinks = [RAMSink(), RAMSink()]
    with Recorder(model, keep_op=True, sink=sinks) as rec:
        model(x)
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            model[2:](torch.ones(1, 9))
        model(x)
    both = [fastrec.Recording(sink.source()) for sink in sinks]
    assert len(both[0]) == len(both[1]) == len(rec.recording) == 10
    assert all(same_bits(a.activation, b.activation) for a, b in zip(*both, strict=True))


def test_record_returns_the_output_when_asked(model: nn.Module, x: Tensor) -> None:
    out, recording = record(model, x, keep_op="tanh", return_output=True)
    assert same_bits(out, model(x)) and len(recording) == 1
    out, recording = record(model, call=lambda: model(x) + 1, keep_op=["tanh", "add"], return_output=True)
    assert [r.ctx.site for r in recording] == ["1/tanh", ":call/add"] and same_bits(out, model(x) + 1)
    with pytest.raises(ValueError, match="give either input_args or input_kwargs, or call="):
        record(model, keep_op="tanh")
    with pytest.raises(ValueError, match="give either input_args or input_kwargs, or call="):
        record(model, x, call=lambda: None, keep_op="tanh")


def test_an_exception_that_leaves_the_block_keeps_what_was_recorded(model: nn.Module, x: Tensor) -> None:
    closed: list[str] = []
    with pytest.raises(ZeroDivisionError), Recorder(model, keep_op="tanh", on_predicate_error="collect") as rec:
        rec._session._pass_log.close = lambda: closed.append("closed")
        model(x)
        raise ZeroDivisionError
    assert len(rec.recording) == 1 and closed == ["closed"]


def test_failed_passes_can_be_kept_and_are_flagged(model: nn.Module, x: Tensor) -> None:
    with Recorder(model, keep_op="linear", on_forward_error="keep") as rec:
        model(x)
        model[3].register_forward_hook(lambda *_: (_ for _ in ()).throw(ArithmeticError("no")))
        with pytest.raises(ArithmeticError):
            model(x)
        assert rec.recording.n_passes == 2
    assert [(r.ctx.pass_index, r.ctx.site) for r in rec.recording] == [
        *((0, "0/linear"), (0, "2/linear"), (0, "4/linear")),
        *((1, "0/linear"), (1, "2/linear")),
    ]
    outcomes = rec._ram.source().passes()["outcome"].tolist()
    assert outcomes == [0, 1]


def test_a_retried_pass_is_a_pass_of_its_own(model: nn.Module, x: Tensor) -> None:
    with Recorder(model, keep_op="tanh") as rec:
        for attempt in range(4):
            try:
                model(x if attempt % 2 else x[:, :2])
            except RuntimeError:
                continue
            rec.step()
    assert [(r.ctx.pass_index, r.ctx.step) for r in rec.recording] == [(1, 0), (3, 1)]


def test_a_recorder_shows_its_roots_and_state(model: nn.Module, x: Tensor) -> None:
    rec = Recorder(model, keep_op="tanh")
    assert repr(rec).startswith("<Recorder of Sequential: new")
    with rec:
        model(x)
    assert "closed" in repr(rec)
    assert repr(Recorder({"a": model}, keep_op=True)).startswith("<Recorder of a=Sequential: new")


def test_using_a_recorder_outside_of_its_block_is_an_error(model: nn.Module, x: Tensor) -> None:
    rec = Recorder(model, keep_op="tanh")
    with pytest.raises(RuntimeError, match="nothing was recorded yet; open the recorder"):
        _ = rec.recording
    with rec:
        model(x)
        with pytest.raises(RuntimeError, match="this recorder is open, and a recorder is used once"):
            rec.__enter__()
    uses = [lambda: rec.log(x), rec.step, rec.pop, lambda: rec.phase("a").__enter__()]
    for use in [*uses, lambda: rec.pause().__enter__(), lambda: rec.region().__enter__()]:
        with pytest.raises(RuntimeError, match=r"this recorder is closed; use it inside its `with Recorder\(...\)"):
            use()
    with pytest.raises(RuntimeError, match="a recorder is used once; make another one"):
        rec.__enter__()
    assert len(rec.recording) == 1


OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"keepop": "tanh"}, "there is no option 'keepop'; did you mean 'keep_op'"),
    ({"capture": {"keep_grad": True}}, "give a CaptureSpec, such as CaptureSpec(dtype=torch.float16)"),
    ({"history_size": -1}, "history_size=-1: give a whole number from 0 up"),
    ({"history_size": True}, "history_size=True: give a whole number"),
    ({"retain": 0}, "retain=0: give a whole number from 1 up"),
    ({"retain": 1.5}, "retain=1.5: give a whole number"),
    ({"random_seed": "a"}, "random_seed='a': give a whole number"),
    ({"train_mode": 1}, "train_mode=1: give True or False"),
    ({"track_parents": "yes"}, "track_parents='yes': give True or False"),
    ({"autoreset": "NEXT_STEP"}, "autoreset='NEXT_STEP': choose one of 'next_step', 'same_step', None"),
    ({"on_predicate_error": "ignore"}, "choose one of 'raise', 'collect'"),
    ({"on_forward_error": "ignore"}, "choose one of 'drop', 'keep'"),
    ({"engine": "egaer"}, "engine='egaer': "),
    ({"returns_none": True}, "returns_none=True is only allowed with halt="),
    ({"sink": 3}, "sink=3: give a path such as 'run.h5', a sink, or a list of them"),
    ({"sink": []}, "sink=[]: give at least one sink"),
    ({"keep_op": 3}, "keep_op got 3 (int); give a predicate, a function of the context"),
    ({"keep_op": False}, "keep_op=False keeps nothing"),
    ({"keep_op": ["relu", 3]}, "keep_op got a list that holds 3 (int)"),
    ({"keep_module": nn.Linear(2, 2)}, "keep_module got a module (Linear) that is not in the recorded model"),
    ({"keep_module": torch.relu}, "keep_module got the function relu; ops are selected by keep_op="),
    ({"keep_op": lambda: True}, "it is called with one, the context"),
    ({"keep_op": op("relu") & after("conv2d", within=20)}, "looks back 20 ops, and history_size=8"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "message"), OPTIONS, ids=[next(iter(options)) for options, _ in OPTIONS])
def test_wrong_options_say_what_to_do(options: dict[str, Any], message: str, model: nn.Module) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        Recorder(model, **{"keep_op": "tanh", **options})
    assert isinstance(caught.value, fastrec.FastrecError)


def test_a_predicate_that_raises_names_the_event(model: nn.Module, x: Tensor) -> None:
    with Recorder(model, keep_op=lambda ctx: ctx.tensor_shap == (1,)) as rec:
        with pytest.raises(ValueError, match=r"failed at 'linear_1'.*no field 'tensor_shap'; did you mean"):
            model(x)
    assert len(rec.recording) == 0


def test_collected_predicate_errors_skip_the_event_and_warn(model: nn.Module, x: Tensor) -> None:
    def picky(ctx: Any) -> bool:
        if ctx.layer_type == "tanh":
            raise KeyError("no tanh")
        return True

    with pytest.warns(FastrecWarning, match=r"predicates failed at 150 events, which were skipped.*KeyError.*'tanh_1'"):
        with Recorder(model, keep_op=picky, on_predicate_error="collect") as rec:
            for _ in range(150):
                model(x)
    assert len(rec.recording) == 4 * 150
    failures = rec.recording.predicate_failures
    assert len(failures) == 100 and failures[0].context.label == "tanh_1" and "no tanh" in failures[0].error


def test_a_structural_predicate_that_raises_is_handled_alike(model: nn.Module, x: Tensor) -> None:
    broken = fastrec.predicates.structural(lambda ctx: ctx.module_stack[7].module_address == "a")
    with pytest.raises(ValueError, match=r"structural\(.*failed at 'linear_1' \(op at '0/linear', .*IndexError"):
        record(model, x, keep_op=broken)
    with pytest.warns(FastrecWarning, match="predicates failed at 5 events"):
        assert len(record(model, x, keep_op=broken, on_predicate_error="collect")) == 0


def test_predicates_of_modules_select_outputs_unless_they_say_inputs(model: nn.Module, x: Tensor) -> None:
    both = record(model, x, keep_module=lambda ctx: ctx.module_address == "1")
    assert [r.ctx.kind for r in both] == ["module_enter", "module_exit"]
    assert [r.ctx.kind for r in record(model, x, keep_module=module("1"))] == ["module_exit"]


def test_a_recording_without_ops_says_what_it_did_not_observe(model: nn.Module, x: Tensor) -> None:
    ctx = record(model, x, keep_module="1")[0].ctx
    assert ctx.op_index is None and ctx.event_index is None and ctx.label == "1:1"
    with pytest.raises(AttributeError, match="recent_ops are not observed"):
        _ = ctx.recent_ops


@pytest.mark.parametrize(
    "halt", [lambda ctx: CaptureSpec(), lambda ctx: {"dtype": torch.float16}, op("tanh").with_(keep_grad=True)]
)
def test_halt_is_answered_by_yes_or_no(model: nn.Module, x: Tensor, halt: Any) -> None:
    with pytest.raises(PredicateError, match=r"halt=.* returned .*True, False or None"):
        fastrec.record(model, x, keep_op="tanh", halt=halt)
