"""Every callable that a mode can see has the facts that its calls bear out."""

import copy
import operator
import re
from types import FunctionType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn, overrides, randn

import fastrec
from fastrec.ops.facts import op_facts, reads_inplace_flag
from fastrec.ops.table import ALIASES, ESCAPES, NO_EVENTS, OPERATORS, canonical
from tests.helpers import op_calls
from tests.helpers.op_calls import Call, Seen, seen_in, tensors

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:FutureWarning")


def visible_functions() -> list[Any]:
    """What torch says that can be overridden, and the accessors of every property of a tensor."""
    functions = [f for group in overrides.get_overridable_functions().values() for f in group]
    for kind in Tensor.__mro__[:-1]:
        for member in vars(kind).values():
            if type(member).__name__ in ("getset_descriptor", "property"):
                functions += [member.__get__, member.__set__, member.__delete__]
    init = [nn.init.uniform_, nn.init.normal_, nn.init.constant_, nn.init.kaiming_uniform_]
    return [*dict.fromkeys([*functions, *init, *overrides.get_ignored_functions()])]


VISIBLE = visible_functions()


def test_more_than_a_thousand_functions_are_visible() -> None:
    assert len(VISIBLE) > 1000


def test_every_visible_function_has_a_canonical_name() -> None:
    for func in VISIBLE:
        facts = op_facts(func)
        if facts is not None:
            assert re.fullmatch(r"[a-z][a-z0-9]*", facts.layer_type), func
            assert facts.func_name and facts.segment and "/" not in facts.segment, func
            assert facts.segment == (facts.func_name if facts.composite else facts.layer_type), func


def test_functions_of_one_name_are_forms_of_one_op() -> None:
    """Two spellings meet in one layer type only if the table says so."""
    spellings: dict[str, set[str]] = {}
    for func in VISIBLE:
        facts = op_facts(func)
        if facts is not None and facts.func_name not in OPERATORS:
            spelling = facts.func_name.strip("_").lower()
            spellings.setdefault(facts.layer_type, set()).add(spelling)
    clashes = {name: found - set(ALIASES) for name, found in spellings.items() if len(found - set(ALIASES)) > 1}
    assert clashes == {}


def test_looking_up_twice_computes_once() -> None:
    op_facts(torch.relu)
    hits = op_facts.cache_info().hits
    assert op_facts(torch.relu) is op_facts(torch.relu)
    assert op_facts.cache_info().hits == hits + 2


x, whole = torch.linspace(0.1, 0.9, 9).reshape(3, 3), torch.arange(1, 10).reshape(3, 3)


def inplace(change: Any, *args: Any, on: Tensor = x) -> Call:
    return lambda: change(on.clone(), *args)


FORMS: dict[str, list[Call]] = {
    "add": [lambda: x + 1, lambda: 1 + x, lambda: torch.add(x, 1), inplace(Tensor.add_, 1), inplace(operator.iadd, 1),
            lambda: torch.add(x, 1, out=torch.empty(3, 3)), lambda: Tensor.__radd__(x, 1)],
    "sub": [lambda: 1 - x, lambda: x - 1, lambda: torch.sub(x, 1), inplace(Tensor.sub_, 1), inplace(operator.isub, 1),
            lambda: torch.subtract(x, 1), lambda: torch.rsub(x, 1), inplace(Tensor.subtract_, 1)],
    "mul": [lambda: x * 2, lambda: 2 * x, lambda: torch.multiply(x, 2), inplace(operator.imul, 2)],
    "div": [lambda: x / 2, lambda: 1 / x, lambda: torch.div(x, 2), lambda: torch.true_divide(x, 2),
            lambda: torch.divide(x, 2), inplace(operator.itruediv, 2), lambda: Tensor.__div__(x, 2)],
    "floordivide": [lambda: x // 2, lambda: 2 // x, lambda: torch.floor_divide(x, 2), inplace(operator.ifloordiv, 2)],
    "remainder": [lambda: x % 2, lambda: 2 % x, lambda: torch.remainder(x, 2), inplace(operator.imod, 2)],
    "pow": [lambda: x**2, lambda: 2**x, lambda: torch.pow(x, 2), inplace(operator.ipow, 2), lambda: pow(x, 2)],
    "matmul": [lambda: x @ x, lambda: torch.matmul(x, x), lambda: torch.linalg.matmul(x, x),
               lambda: Tensor.__rmatmul__(x, x), inplace(operator.imatmul, x)],
    "neg": [lambda: -x, lambda: torch.neg(x), lambda: torch.negative(x), inplace(Tensor.negative_)],
    "positive": [lambda: +x, lambda: torch.positive(x)],
    "abs": [lambda: abs(x), lambda: torch.absolute(x), inplace(Tensor.absolute_)],
    "bitwisenot": [lambda: ~whole, lambda: torch.bitwise_not(whole)],
    "bitwiseand": [lambda: whole & 1, lambda: 1 & whole, lambda: torch.bitwise_and(whole, 1),
                   inplace(operator.iand, 1, on=whole), lambda: Tensor.__rand__(whole, 1)],
    "bitwiseor": [lambda: whole | 1, lambda: 1 | whole, inplace(operator.ior, 1, on=whole)],
    "bitwisexor": [lambda: whole ^ 1, lambda: 1 ^ whole, inplace(operator.ixor, 1, on=whole)],
    "bitwiseleftshift": [lambda: whole << 1, lambda: 1 << whole, inplace(operator.ilshift, 1, on=whole)],
    "bitwiserightshift": [lambda: whole >> 1, lambda: 1 >> whole, inplace(operator.irshift, 1, on=whole)],
    "eq": [lambda: x == 1, lambda: 1 == x, lambda: torch.eq(x, 1)],  # noqa: SIM300
    "ne": [lambda: x != 1, lambda: torch.not_equal(x, 1)],
    "lt": [lambda: x < 1, lambda: torch.less(x, 1), lambda: 1 > x],  # noqa: SIM300
    "le": [lambda: x <= 1, lambda: torch.less_equal(x, 1)],
    "gt": [lambda: x > 1, lambda: torch.greater(x, 1)],
    "ge": [lambda: x >= 1, lambda: torch.greater_equal(x, 1)],
    "getitem": [lambda: x[0], lambda: x[x > 0.5], lambda: operator.getitem(x, 0)],
    "setitem": [inplace(operator.setitem, 0, 1.0)],
    "t": [lambda: x.T, lambda: x.t(), lambda: torch.t(x), inplace(Tensor.t_)],
    "mt": [lambda: x.mT],
    "h": [lambda: x.H],
    "mh": [lambda: x.mH, lambda: x.adjoint()],
    "real": [lambda: x.real, lambda: torch.real(x)],
    "imag": [lambda: (1j * x).imag],
    "relu": [lambda: F.relu(x), lambda: torch.relu(x), inplace(torch.relu_), lambda: x.relu(), nn.ReLU(),
             lambda: torch.ops.aten.relu(x), lambda: torch.ops.aten.relu.default(x), inplace(F.relu, True)],
    "linear": [lambda: F.linear(x, x), lambda: nn.Linear(3, 3)(x), lambda: torch._C._nn.linear(x, x)],
    "conv2d": [lambda: F.conv2d(x[None], torch.ones(1, 1, 2, 2)), lambda: torch.conv2d(x[None], torch.ones(1, 1, 2, 2)),
               lambda: nn.Conv2d(1, 1, 2)(x[None])],
    "layernorm": [lambda: F.layer_norm(x, (3,)), lambda: torch.layer_norm(x, (3,)), nn.LayerNorm(3)],
    "softmax": [lambda: F.softmax(x, 0), lambda: torch.softmax(x, 0), lambda: x.softmax(0),
                lambda: torch.special.softmax(x, 0), nn.Softmax(0)],
    "logsoftmax": [lambda: F.log_softmax(x, 0), lambda: torch.special.log_softmax(x, 0)],
    "gelu": [lambda: F.gelu(x), lambda: torch._C._nn.gelu(x), nn.GELU()],
    "sigmoid": [lambda: x.sigmoid(), lambda: torch.special.expit(x), lambda: F.sigmoid(x), nn.Sigmoid()],
    "tanh": [lambda: x.tanh(), lambda: F.tanh(x), inplace(torch.tanh_), nn.Tanh()],
    "threshold": [lambda: F.threshold(x, 0.1, 2.0), lambda: torch.threshold(x, 0.1, 2.0)],
    "dropout": [lambda: F.dropout(x), lambda: torch.dropout(x, 0.5, True), nn.Dropout()],
    "batchnorm": [nn.BatchNorm1d(3), lambda: F.batch_norm(x, x[0], x[1])],
    "maxpool1d": [lambda: F.max_pool1d(x, 2), lambda: F.max_pool1d(x, 2, return_indices=True), nn.MaxPool1d(2)],
    "maxpool2d": [lambda: F.max_pool2d(x[None], 2), lambda: F.max_pool2d(x[None], 2, return_indices=True),
                  lambda: torch.max_pool2d(x[None], 2), lambda: nn.MaxPool2d(2)(x[None]),
                  lambda: torch.ops.aten.max_pool2d_with_indices.default(x[None], 2)],
    "adaptivemaxpool1d": [lambda: F.adaptive_max_pool1d(x, 1), lambda: torch.adaptive_max_pool1d(x, 1)],
    "transpose": [lambda: x.transpose(0, 1), lambda: torch.swapaxes(x, 0, 1), inplace(Tensor.swapdims_, 0, 1)],
    "cat": [lambda: torch.cat([x, x]), lambda: torch.concat([x, x]), lambda: torch.concatenate([x, x])],
    "clamp": [lambda: torch.clip(x, 0), lambda: x.clamp(0), inplace(Tensor.clip_, 0)],
    "atan": [lambda: torch.arctan(x), lambda: x.atan(), inplace(Tensor.arctan_)],
    "det": [lambda: torch.det(x), lambda: torch.linalg.det(x)],
    "inverse": [lambda: torch.inverse(x + torch.eye(3)), lambda: torch.linalg.inv(x + torch.eye(3))],
    "movedim": [lambda: torch.moveaxis(x, 0, 1), lambda: x.movedim(0, 1)],
    "flip": [lambda: Tensor.__reversed__(x), lambda: x.flip(0)],
    "split": [lambda: torch.split(x, 1), lambda: x.split([1, 2])],
    "unbind": [lambda: iter(x), lambda: x.unbind(0)],
    "unique": [lambda: torch.unique(x), lambda: x.unique(), lambda: torch.unique(x, return_inverse=True)],
    "norm": [lambda: torch.norm(x), lambda: x.norm()],
    "linalgnorm": [lambda: torch.linalg.norm(x)],
    "fftrfft": [lambda: torch.fft.rfft(x)],
    "specialndtr": [lambda: torch.special.ndtr(x)],
    "lstm": [lambda: nn.LSTM(3, 3)(x)],
    "scaleddotproductattention": [lambda: F.scaled_dot_product_attention(x, x, x)],
    "uniform": [inplace(nn.init.uniform_), inplace(Tensor.uniform_)],
    "rand": [lambda: torch.rand(3)],
    "einsum": [lambda: torch.einsum("ij->ji", x)],
}  # fmt: skip


@pytest.mark.parametrize(("layer_type", "form"), [(name, form) for name, forms in FORMS.items() for form in forms])
def test_all_forms_of_an_op_have_one_type(layer_type: str, form: Call) -> None:
    form = form if isinstance(form, FunctionType) else lambda module=form: module(x)
    last = [op_facts(func) for func in seen_in(form).functions]
    names = [facts.layer_type for facts in last if facts is not None]
    assert layer_type in names
    assert set(names) - {layer_type} <= {"clone", "ones", "empty", "getitem", "eye", "add", "mul", "gt", "uniform"} | {
        *("kaiminguniform", "zeros", "squeeze", "unsqueeze")
    }


def documented_aliases() -> list[tuple[Any, str]]:
    """The functions whose documentation calls them another name of a function."""
    pattern = re.compile(r"\s*(?:\w+\(.*\) -> .*\n\s*)?Alias (?:for|of) :\w+:`~?([\w.]+?)(?:\(\))?`")
    found = [(func, pattern.match(getattr(func, "__doc__", None) or "")) for func in VISIBLE]
    return [(func, match[1]) for func, match in found if match]


def resolved(path: str) -> Any:
    parts = path.removeprefix("torch.").split(".")
    return operator.attrgetter(".".join(parts))(torch)


def test_what_torch_documents_as_an_alias_is_one_op() -> None:
    aliases = documented_aliases()
    assert len(aliases) > 40
    for func, path in aliases:
        facts, expected = op_facts(func), op_facts(resolved(path))
        assert (facts and facts.layer_type) == (expected and expected.layer_type), (func, path)


def test_every_alias_in_the_table_is_seen_under_both_names() -> None:
    names = {func.__name__.strip("_") for func in VISIBLE if hasattr(func, "__name__")}
    names |= {"matrix_h", "numpy_t"}  # of registered ops, which a mode sees as properties
    canonicals = {facts.layer_type for func in VISIBLE if (facts := op_facts(func)) is not None}
    assert {name for name in ALIASES if name not in names} == set()
    assert {name for name in ALIASES.values() if name not in canonicals} == set()


# One call for each of the functions that are never events.
strided = torch.ones(3, 3)


def quantized() -> Tensor:
    return torch.quantize_per_tensor(strided, 0.1, 0, torch.qint8)


def per_channel() -> Tensor:
    return torch.quantize_per_channel(strided, torch.ones(3), torch.zeros(3, dtype=torch.long), 0, torch.qint8)


sparse = strided.to_sparse()
scalar = torch.tensor(1)
SILENT: dict[str, Call] = {
    **{
        name: (lambda name=name: getattr(strided, name)())
        for name in """size dim ndimension numel nelement stride storage_offset element_size get_device dim_order
        sparse_dim dense_dim storage_type tolist __len__ __hash__ __repr__ __dir__ __dlpack_device__ _is_view
        _clear_non_serializable_cached_data _is_zerotensor _use_count
        is_contiguous is_complex is_floating_point is_shared is_signed is_conj is_neg is_inference""".split()
    },
    **{
        name: (lambda name=name: getattr(scalar, name)())
        for name in "item __bool__ __nonzero__ __int__ __long__ __float__ __complex__ __index__ is_nonzero".split()
    },
    **{name: (lambda name=name: getattr(sparse, name)()) for name in "_nnz _dimI _dimV is_coalesced".split()},
    **{name: (lambda name=name: getattr(quantized(), name)()) for name in "q_scale q_zero_point qscheme".split()},
    "q_per_channel_axis": lambda: per_channel().q_per_channel_axis(),
    "equal": lambda: torch.equal(strided, strided),
    "allclose": lambda: torch.allclose(strided, strided),
    "result_type": lambda: torch.result_type(strided, 1),
    "can_cast": lambda: torch.can_cast(torch.float, torch.double),
    "promote_types": lambda: torch.promote_types(torch.float, torch.double),
    "__contains__": lambda: 1.0 in strided,
    "__format__": lambda: f"{scalar}",
    "__reduce_ex__": lambda: strided.__reduce_ex__(2)[0],
    "backward": lambda: (randn(3, requires_grad=True).sum()).backward(),
    "autograd.backward": lambda: torch.autograd.backward(randn(3, requires_grad=True).sum()),
    "register_hook": lambda: randn(3, requires_grad=True).register_hook(print),
    "register_post_accumulate_grad_hook": lambda: randn(3, requires_grad=True).register_post_accumulate_grad_hook(
        print
    ),
    "retain_grad": lambda: randn(3, requires_grad=True).retain_grad(),
    "device": lambda: torch.device("cpu"),
    "_set_grad_enabled": lambda: torch.no_grad().__enter__() or torch.set_grad_enabled(True),
    "is_tensor": lambda: torch.is_tensor(strided),
    "is_same_size": lambda: torch.is_same_size(strided, strided),
    "cudnn_is_acceptable": lambda: torch.cudnn_is_acceptable(strided),
    "shape": lambda: (strided.shape, strided.dtype, strided.device, strided.layout, strided.ndim, strided.is_cuda),
    "grad": lambda: (strided.grad, strided.grad_fn, strided.requires_grad, strided.is_leaf, strided._version),
}


@pytest.mark.parametrize("name", SILENT)
def test_functions_that_return_no_tensor_are_no_events(name: str) -> None:
    for func, _, _, out in seen_in(SILENT[name]).calls:
        facts = op_facts(func)
        assert facts is None or facts.escapes or tensors(out), func


def test_no_event_returns_a_tensor() -> None:
    calls = [*SILENT.values(), *(form for forms in FORMS.values() for form in forms)]
    calls += [
        call for table in (op_calls.COMPOSITES, op_calls.ONE_OP) for variants in table.values() for call in variants
    ]
    silent = set()
    for call in calls:
        call = call if not isinstance(call, nn.Module) else lambda module=call: module(x)
        for func, _, _, out in seen_in(call).calls:
            if op_facts(func) is None:
                silent.add(getattr(func, "__name__", ""))
                assert not tensors(out), func
    assert len(silent & NO_EVENTS) > 40


@pytest.mark.parametrize("name", ["shape", "dtype", "grad", "data", "grad_fn", "requires_grad", "is_leaf", "_version"])
def test_accessors_of_facts_are_no_events(name: str) -> None:
    descriptor = getattr(Tensor, name)
    assert op_facts(descriptor.__get__) is None
    assert op_facts(descriptor.__set__) is None


def test_flags_that_are_set_are_no_events() -> None:
    assert seen_in(lambda: randn(3).requires_grad_()).layer_types == ["randn"]
    assert seen_in(lambda: setattr(x.clone(), "requires_grad", True)).layer_types == ["clone"]


def test_classes_are_no_events() -> None:
    assert op_facts(torch.device) is None
    assert op_facts(torch.autocast) is None


# Calls with the tensors that they write.
def written(change: Any, *args: Any, **kwargs: Any) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    return change, args, kwargs


fresh = torch.ones
WRITING = [
    written(Tensor.add_, fresh(3), 1),
    written(operator.iadd, fresh(3), 1),
    written(operator.ipow, fresh(3), 2),
    written(operator.setitem, fresh(3), 0, 2.0),
    written(torch.add, fresh(3), 1, out=torch.empty(3)),
    written(torch.relu_, fresh(3)),
    written(F.relu, fresh(3), inplace=True),
    written(F.relu, fresh(3), True),
    written(F.hardtanh, fresh(3), -1.0, 1.0, True),
    written(F.leaky_relu, fresh(3), inplace=True),
    written(F.threshold, fresh(3), 0.1, 2.0, True),
    written(F.celu, fresh(3), 1.0, True),
    written(nn.init.uniform_, fresh(3)),
    written(nn.init.constant_, fresh(3), 2.0),
    written(Tensor.copy_, fresh(3), torch.zeros(3)),
    written(Tensor.index_fill_, fresh(3), 0, torch.tensor([0]), 2.0),
    written(Tensor.unsqueeze_, fresh(3), 0),
    written(torch.ops.aten.add_.Tensor, fresh(3), fresh(3)),
    written(torch.ops.aten.add_, fresh(3), fresh(3)),
    written(torch.ops.aten.add.out, fresh(3), fresh(3), out=torch.empty(3)),
    written(torch._foreach_add_, [fresh(3)], 1),
    *([written(torch.foreach.add_, [fresh(3)], 1)] if hasattr(torch, "foreach") else []),
    written(F.instance_norm, fresh(1, 2, 3), fresh(2), fresh(2)),
    written(torch.instance_norm, fresh(1, 2, 3), None, None, fresh(2), fresh(2), True, 0.1, 1e-5, False),
    written(F.embedding, torch.tensor([0]), fresh(3, 3), None, 0.1),
    written(F.embedding_bag, torch.tensor([[0]]), fresh(3, 3), max_norm=0.1),
    written(F.batch_norm, randn(4, 3), fresh(3), fresh(3), training=True),
    written(F.batch_norm, randn(4, 3), fresh(3), fresh(3), None, None, True),
    written(torch.batch_norm, randn(4, 3), None, None, fresh(3), fresh(3), True, 0.1, 1e-5, False),
    written(torch.native_batch_norm, randn(4, 3), None, None, fresh(3), fresh(3), True, 0.1, 1e-5),
    written(torch.ops.aten.native_batch_norm.default, randn(4, 3), None, None, fresh(3), fresh(3), True, 0.1, 1e-5),
    written(torch.batch_norm_update_stats, randn(4, 3), fresh(3), fresh(3), 0.1),
]
READING = [
    written(Tensor.add, fresh(3), 1),
    written(torch.add, fresh(3), 1, out=None),
    written(F.relu, fresh(3)),
    written(F.relu, fresh(3), inplace=False),
    written(F.relu, fresh(3), False),
    written(F.hardtanh, fresh(3), -1.0, 1.0),
    written(F.batch_norm, randn(4, 3), fresh(3), fresh(3)),
    written(F.batch_norm, randn(4, 3), fresh(3), fresh(3), None, None, False),
    written(F.instance_norm, fresh(1, 2, 3)),
    written(F.embedding, torch.tensor([0]), fresh(3, 3)),
    written(Tensor.requires_grad_, fresh(3)),
    written(Tensor.share_memory_, fresh(3)),
    written(torch.ops.aten.relu, fresh(3)),
    written(torch.ops.aten.add, fresh(3), fresh(3)),
]


def changed_by(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bool, list[bool]]:
    """Whether a call changes one of its arguments, and what the facts say of each call that a mode saw."""
    arguments = tensors((args, kwargs))
    before = [(t._version, t.clone()) for t in arguments]
    with Seen() as seen:
        func(*args, **kwargs)
    changed = any(
        t._version != version or t.shape != old.shape or not torch.equal(t, old)
        for t, (version, old) in zip(arguments, before, strict=True)
    )
    known = ((op_facts(func), args, kwargs) for func, args, kwargs, _ in seen.calls)
    return changed, [reads_inplace_flag(facts, args, kwargs) for facts, args, kwargs in known if facts is not None]


@pytest.mark.parametrize(("func", "args", "kwargs"), WRITING)
def test_a_call_that_writes_an_argument_is_known(func: Any, args: Any, kwargs: Any) -> None:
    changed, says_so = changed_by(func, copy.deepcopy(args), copy.deepcopy(kwargs))
    assert changed
    assert any(says_so)


@pytest.mark.parametrize(("func", "args", "kwargs"), READING)
def test_a_call_that_only_reads_is_known(func: Any, args: Any, kwargs: Any) -> None:
    changed, says_so = changed_by(func, copy.deepcopy(args), copy.deepcopy(kwargs))
    assert not changed
    assert not any(says_so)


def test_no_call_writes_unannounced() -> None:
    for table in (op_calls.COMPOSITES, op_calls.ONE_OP, FORMS):
        for calls in table.values():
            for call in calls:
                with WatchingWrites():
                    call(x) if isinstance(call, nn.Module) else call()


class WatchingWrites(Seen):
    """Fails at the first call that changes an argument without its facts saying so."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        plain = [t for t in tensors((args, kwargs)) if t.layout is torch.strided]
        versions = [t._version for t in plain]
        out = super().__torch_function__(func, types, args, kwargs)
        facts = op_facts(func)
        if [t._version for t in plain] != versions:
            assert facts is not None and reads_inplace_flag(facts, args, kwargs or {}), func
        return out


def test_batch_norm_writes_where_no_version_tells() -> None:
    """Why its `training` flag is in the table: torch doesn't count these writes."""
    mean = torch.zeros(3)
    F.batch_norm(torch.ones(4, 3), mean, torch.ones(3), training=True)
    assert mean._version == 0 and mean.sum() > 0


SHARING: dict[str, Call] = {
    "numpy": lambda: x.numpy(),
    "__array__": lambda: np.asarray(x),
    "__dlpack__": lambda: np.from_dlpack(x),
    "data_ptr": lambda: x.data_ptr(),
    "untyped_storage": lambda: x.untyped_storage(),
    "storage": lambda: x.storage(),
    "share_memory_": lambda: x.clone().share_memory_(),
    "as_tensor": lambda: torch.as_tensor(np.ones(3)),
    "asarray": lambda: torch.asarray(np.ones(3)),
    "__array_wrap__": lambda: x.__array_wrap__(np.ones(3)),
}


@pytest.mark.parametrize("name", SHARING)
def test_memory_that_leaves_torch_is_known(name: str) -> None:
    seen = {facts.func_name for func in seen_in(SHARING[name]).functions if (facts := op_facts(func)) and facts.escapes}
    assert name in seen


def test_ordinary_ops_keep_their_memory() -> None:
    names = {facts.func_name for func in VISIBLE if (facts := op_facts(func)) is not None and facts.escapes}
    assert names <= ESCAPES
    assert not op_facts(Tensor.detach).escapes


def test_a_cuda_array_is_shared_memory() -> None:
    assert op_facts(Tensor.__cuda_array_interface__.__get__).escapes


def test_python_operators_are_the_ops_that_they_run() -> None:
    """Graphs name their nodes by functions of the `operator` module."""
    pairs = {
        "add": "add",
        "iadd": "add",
        "truediv": "div",
        "and_": "bitwiseand",
        "getitem": "getitem",
        "matmul": "matmul",
    }
    for name, layer_type in {**pairs, "neg": "neg", "invert": "bitwisenot", "not_": "not", "lt": "lt"}.items():
        assert op_facts(getattr(operator, name)).layer_type == layer_type
    assert op_facts(operator.iadd).writes and not op_facts(operator.add).writes
    assert op_facts(operator.setitem).writes


@pytest.fixture
def library():
    library = torch.library.Library("fastrec_test", "DEF")
    yield library
    library._destroy()


def test_custom_ops_go_by_their_name_and_schema(library) -> None:
    library.define("Fancy_op(Tensor x) -> Tensor")
    library.define("change(Tensor(a!) x, int n) -> ()")
    library.define("count(Tensor x) -> int")
    library.define("size(Tensor x) -> Tensor")
    ops = torch.ops.fastrec_test
    for op in (ops.Fancy_op, ops.Fancy_op.default):
        assert op_facts(op).layer_type == "fancyop" and not op_facts(op).writes
    assert op_facts(ops.Fancy_op.default).func_name == "Fancy_op.default"
    assert op_facts(ops.change).writes and op_facts(ops.change.default).writes
    assert op_facts(ops.count) is None
    assert op_facts(ops.size).layer_type == "size"


def test_a_decorated_custom_op_is_seen_by_its_name() -> None:
    @torch.library.custom_op("fastrec_test2::my_scale", mutates_args=())
    def my_scale(x: Tensor, by: float) -> Tensor:
        return x * by

    assert seen_in(lambda: my_scale(x, 2.0)).layer_types == ["myscale"]


def test_higher_order_ops_go_by_their_name() -> None:
    assert op_facts(torch.ops.higher_order.cond).layer_type == "cond"


class Callback:
    def __call__(self, *args: Any) -> None: ...


@pytest.mark.parametrize(
    ("func", "layer_type"),
    [(lambda x: x, "lambda"), (Callback(), "callback"), (Callback().__call__, "call"), (len, "len")],
)
def test_callables_never_seen_before_go_by_their_name(func: Any, layer_type: str) -> None:
    assert op_facts(func).layer_type == layer_type
    assert not op_facts(func).composite


def test_a_users_function_may_have_the_name_of_a_silent_one() -> None:
    def size(x: Tensor) -> Tensor:
        return x

    assert op_facts(size).layer_type == "size"
    assert op_facts(Tensor.size) is None


@pytest.mark.parametrize("name", ["_", "__", "<lambda>", "Relu6_", "__rsub__", "T"])
def test_any_name_has_a_canonical_form(name: str) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9]*", canonical(name))


def test_properties_that_another_tool_has_wrapped_are_the_same_events(monkeypatch: pytest.MonkeyPatch) -> None:
    class Descriptor:
        def __init__(self, get: Any) -> None:
            self.get = get

        def __get__(self, tensor: Any, owner: Any = None) -> Any:
            return self if tensor is None else self.get(tensor)

    class Turned(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.T.real.mT.grad_fn or x.T.real.mT.sin()

    x = torch.ones(2, 3)
    bare = list(fastrec.record(Turned(), x, keep_op=True).sites)
    assert bare[:3] == ["/t", "/real", "/mt"]
    for wrap in (lambda get: property(lambda self: get(self)), Descriptor):
        for name in ("T", "real", "mT", "grad_fn"):
            monkeypatch.setattr(torch.Tensor, name, wrap(getattr(torch._C.TensorBase, name).__get__))
        assert list(fastrec.record(Turned(), x, keep_op=True).sites) == bare
        monkeypatch.undo()
