"""Calls of every Python function of torch that a mode can see, in the variants that run different ops."""

from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn, rand, randint, randn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from fastrec.ops.facts import op_facts, opened

Call = Callable[[], Any]


class Seen(TorchFunctionMode):
    """Remembers every call of a function: the function, its arguments, its value."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out

    @property
    def functions(self) -> list[Any]:
        return [func for func, *_ in self.calls]

    @property
    def layer_types(self) -> list[str]:
        """The types of the events: calls of functions that have facts, with a tensor in their value."""
        return [
            facts.layer_type
            for func, args, _, out in self.calls
            if (facts := op_facts(func)) is not None and tensors(args[0] if out is None and args else out)
        ]


def tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def seen_in(call: Call) -> Seen:
    with Seen() as seen:
        call()
    return seen


class Opening(TorchFunctionMode):
    """Runs the functions of one name opened, and remembers what it saw inside of each call."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.opened: list[tuple[Any, Seen]] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") != self.name or not isinstance(func, FunctionType):
            return func(*args, **(kwargs or {}))
        with Seen() as seen:
            out = opened(func)(*args, **(kwargs or {}))
        self.opened.append((func, seen))
        return out


def run_opened(name: str, call: Call) -> tuple[list[torch.Tensor], list[tuple[Any, Seen]]]:
    torch.manual_seed(0)
    with Opening(name) as opening:
        out = call()
    assert opening.opened, f"{name} never ran"
    return tensors(out), opening.opened


def variants(func: Callable[..., Any], *calls: tuple[tuple[Any, ...], dict[str, Any]]) -> list[Call]:
    return [lambda args=args, kwargs=kwargs: func(*args, **kwargs) for args, kwargs in calls]


def attention(*, embed: int = 4, heads: int = 2, **options: Any) -> Any:
    options = {"need_weights": False, "mask": None, **options}
    mask, batched, call = options.pop("mask"), options.pop("batched", True), options.pop("call", {})
    module = nn.MultiheadAttention(embed, heads, **{k: v for k, v in options.items() if k != "need_weights"})
    x = randn(3, 2, embed) if batched else randn(3, embed)
    other = randn(5, 2, module.kdim) if module.kdim != embed else x
    return module(x, other, other, need_weights=options["need_weights"], attn_mask=mask, **call)


def attention_calls() -> list[Call]:
    causal = nn.Transformer.generate_square_subsequent_mask(3)
    return [
        attention,
        partial(attention, need_weights=True),
        partial(attention, need_weights=True, mask=causal),
        partial(attention, mask=causal, call={"is_causal": True}),
        partial(attention, mask=torch.zeros(3, 3, dtype=torch.bool)),
        partial(attention, batched=False),
        partial(attention, batched=False, need_weights=True),
        partial(attention, add_bias_kv=True, need_weights=True),
        partial(attention, add_zero_attn=True, dropout=0.5, need_weights=True),
        partial(attention, kdim=6, vdim=6, need_weights=True),
        partial(attention, need_weights=True, call={"average_attn_weights": False}),
        partial(attention, call={"key_padding_mask": torch.tensor([[False, False, True]] * 2)}),
        partial(
            attention,
            mask=causal,
            need_weights=True,
            call={"key_padding_mask": torch.tensor([[False, False, True]] * 2)},
        ),
        partial(attention, bias=False),
    ]


def images(*shape: int) -> torch.Tensor:
    return randn(1, 2, *shape)


def unpool(pool: Callable[..., Any], undo: Callable[..., Any], *shape: int) -> Any:
    return undo(*pool(images(*shape), 2, return_indices=True), 2)


def probabilities(*shape: int) -> torch.Tensor:
    return rand(*shape) * 0.8 + 0.1


def padded_loss(loss: Callable[..., Any], **options: Any) -> Any:
    return loss(randn(3, 4), randn(3, 4), **options)


def linear_cross_entropy_calls() -> list[Call]:
    """The calls of a function that is new in torch 2.13."""
    if not hasattr(F, "linear_cross_entropy"):
        return []
    chunked = {"options": nn.modules.LinearCrossEntropyOptions()}
    return [
        partial(F.linear_cross_entropy, randn(*batch, 5), randn(6, 5), torch.zeros(batch, dtype=torch.long), **options)
        for batch in ((), (3,))
        for options in ({}, {"linear_bias": randn(6)}, {"reduction": "none"}, {"label_smoothing": 0.1}, chunked)
    ]


# Functions made of several ops.
COMPOSITES: dict[str, list[Call]] = {
    "multi_head_attention_forward": attention_calls(),
    "gumbel_softmax": [lambda: F.gumbel_softmax(randn(3, 4)), lambda: F.gumbel_softmax(randn(3, 4), hard=True)],
    "normalize": [lambda: F.normalize(randn(3, 4)), lambda: F.normalize(randn(3, 4), out=torch.empty(3, 4))],
    "softmin": [lambda: F.softmin(randn(3), 0), lambda: F.softmin(randn(3), 0, dtype=torch.float64)],
    "softsign": [lambda: F.softsign(randn(3))],
    "tanhshrink": [lambda: F.tanhshrink(randn(3))],
    "local_response_norm": [
        lambda: F.local_response_norm(randn(2, 5, 4), 3),
        lambda: F.local_response_norm(randn(2, 5, 4, 4), 3, k=2.0),
        lambda: F.local_response_norm(randn(2, 5, 4, 4, 4), 3),
    ],
    "lp_pool1d": [lambda: F.lp_pool1d(rand(1, 2, 8), 2, 2), lambda: F.lp_pool1d(rand(1, 2, 8), 2, 2, 1, True)],
    "lp_pool2d": [lambda: F.lp_pool2d(images(8, 8), 2, 2), lambda: F.lp_pool2d(images(8, 8), 2, 2, 1)],
    "lp_pool3d": [lambda: F.lp_pool3d(images(4, 4, 4), 2, 2), lambda: F.lp_pool3d(images(4, 4, 4), 2, 2, 1)],
    "fractional_max_pool2d": [lambda: F.fractional_max_pool2d(images(8, 8), 2, output_ratio=(0.5, 0.5))],
    "fractional_max_pool3d": [lambda: F.fractional_max_pool3d(images(8, 8, 8), 2, output_size=4)],
    "fractional_max_pool2d_with_indices": [
        lambda: F.fractional_max_pool2d(images(8, 8), 2, output_size=4, return_indices=True),
        lambda: F.fractional_max_pool2d_with_indices(images(8, 8), 2, 4, _random_samples=rand(1, 2, 2)),
    ],
    "fractional_max_pool3d_with_indices": [
        lambda: F.fractional_max_pool3d(images(8, 8, 8), 2, output_ratio=0.5, return_indices=True)
    ],
    "max_unpool1d": [lambda: unpool(F.max_pool1d, F.max_unpool1d, 8)],
    "dropout1d": [lambda: F.dropout1d(randn(2, 3)), lambda: F.dropout1d(randn(2, 3, 4), inplace=True)],
    "dropout3d": [lambda: F.dropout3d(images(3, 3)), lambda: F.dropout3d(images(3, 3, 3), inplace=True)],
    "embedding_bag": [
        lambda: F.embedding_bag(randint(5, (3, 4)), randn(5, 2)),
        lambda: F.embedding_bag(randint(5, (3, 4)), randn(5, 2), per_sample_weights=rand(3, 4), mode="sum"),
        lambda: F.embedding_bag(randint(5, (6,)), randn(5, 2), torch.tensor([0, 3]), max_norm=0.1),
    ],
    "binary_cross_entropy": [
        lambda: F.binary_cross_entropy(probabilities(3, 4), rand(3, 4)),
        lambda: F.binary_cross_entropy(probabilities(3, 4), rand(3, 4), rand(4)),
    ],
    "kl_div": [partial(padded_loss, F.kl_div, reduction=kind) for kind in ("batchmean", "sum", "none")],
    "l1_loss": [partial(padded_loss, F.l1_loss), partial(padded_loss, F.l1_loss, weight=torch.ones(3, 4))],
    "mse_loss": [
        partial(padded_loss, F.mse_loss),
        *(partial(padded_loss, F.mse_loss, weight=torch.ones(3, 4), reduction=kind) for kind in ("mean", "sum")),
    ],
    "smooth_l1_loss": [partial(padded_loss, F.smooth_l1_loss, beta=beta) for beta in (0.0, 1.0)],
    "huber_loss": [
        partial(padded_loss, F.huber_loss),
        *(partial(padded_loss, F.huber_loss, weight=torch.ones(3, 4), reduction=k) for k in ("none", "mean", "sum")),
    ],
    "gaussian_nll_loss": [
        lambda: F.gaussian_nll_loss(randn(3, 4), randn(3, 4), rand(3, 4)),
        lambda: F.gaussian_nll_loss(randn(3, 4), randn(3, 4), rand(3), full=True, reduction="sum"),
        lambda: F.gaussian_nll_loss(randn(3, 4), randn(3, 4), 0.5, reduction="none"),
    ],
    "multilabel_soft_margin_loss": [
        partial(F.multilabel_soft_margin_loss, randn(3, 4), torch.ones(3, 4), weight, reduction=kind)
        for weight in (None, rand(4))
        for kind in ("mean", "sum", "none")
    ],
    "triplet_margin_with_distance_loss": [
        lambda: F.triplet_margin_with_distance_loss(randn(3, 4), randn(3, 4), randn(3, 4), swap=True),
        lambda: F.triplet_margin_with_distance_loss(
            randn(3, 4), randn(3, 4), randn(3, 4), distance_function=lambda a, b: (a * b).cos().sum(1), reduction="sum"
        ),
    ],
    "stft": [
        partial(stft, window=window, center=center, return_complex=True)
        for stft in (
            lambda **options: torch.stft(randn(32), 8, **options),
            lambda **options: randn(2, 32).stft(8, **options),
        )
        for window in (None, torch.ones(8))
        for center in (True, False)
    ],
    "unravel_index": [
        lambda: torch.unravel_index(torch.tensor([3, 7]), (3, 4)),
        lambda: torch.unravel_index(torch.tensor(3), (3, 4)),
    ],
    "linear_cross_entropy": linear_cross_entropy_calls(),
    "module_load": [
        lambda: randn(3).module_load(randn(3)),
        lambda: randn(3).module_load(randn(3), assign=True),
    ],
    # Low-rank functions hand over themselves only for subclasses.
    "svd_lowrank": [
        lambda: torch.svd_lowrank(nn.Parameter(randn(6, 4)), q=2),
        lambda: torch.svd_lowrank(nn.Parameter(randn(6, 4)), q=2, M=randn(6, 4)),
    ],
    "pca_lowrank": [
        lambda: torch.pca_lowrank(nn.Parameter(randn(6, 4)), q=2),
        lambda: torch.pca_lowrank(nn.Parameter(randn(6, 4).to_sparse()), q=2),
        lambda: torch.pca_lowrank(nn.Parameter(randn(6, 4)), q=2, center=False),
    ],
    "lobpcg": [
        lambda: torch.lobpcg(nn.Parameter(torch.diag(torch.arange(1.0, 13.0)), requires_grad=False), k=2),
        lambda: torch.lobpcg(
            nn.Parameter(torch.diag(torch.arange(1.0, 13.0)), requires_grad=False), k=2, method="basic", largest=False
        ),
    ],
}

x, image = torch.linspace(-1, 1, 12).reshape(3, 4), torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)
whole = torch.arange(1, 13).reshape(3, 4)
volume = torch.linspace(-1, 1, 128).reshape(1, 2, 4, 4, 4)
signal = torch.linspace(-1, 1, 16).reshape(1, 2, 8)
target = torch.tensor([0, 1, 2])
sign = torch.ones(3)

# Functions that run one op.
ONE_OP: dict[str, list[Call]] = {
    "_threshold": [lambda: F.threshold(x, 0.1, 2.0), lambda: F.threshold(x.clone(), 0.1, 2.0, inplace=True)],
    "adaptive_avg_pool2d": [lambda: F.adaptive_avg_pool2d(image, 2)],
    "adaptive_avg_pool3d": [lambda: F.adaptive_avg_pool3d(volume, (2, None, 2))],
    "adaptive_max_pool1d": [lambda: F.adaptive_max_pool1d(signal, 2)],
    "adaptive_max_pool1d_with_indices": [lambda: F.adaptive_max_pool1d(signal, 2, return_indices=True)],
    "adaptive_max_pool2d": [lambda: F.adaptive_max_pool2d(image, (2, None))],
    "adaptive_max_pool2d_with_indices": [lambda: F.adaptive_max_pool2d(image, 2, return_indices=True)],
    "adaptive_max_pool3d": [lambda: F.adaptive_max_pool3d(volume, 2)],
    "adaptive_max_pool3d_with_indices": [lambda: F.adaptive_max_pool3d(volume, 2, return_indices=True)],
    "affine_grid": [lambda: F.affine_grid(torch.ones(1, 2, 3), [1, 1, 2, 2], align_corners=False)],
    "alpha_dropout": [lambda: F.alpha_dropout(x, training=True)],
    "atleast_1d": [lambda: torch.atleast_1d(x[0, 0]), lambda: torch.atleast_1d(x, x)],
    "atleast_2d": [lambda: torch.atleast_2d(x[0]), lambda: torch.atleast_2d(x, x)],
    "atleast_3d": [lambda: torch.atleast_3d(x), lambda: torch.atleast_3d(x, x)],
    "batch_norm": [
        lambda: F.batch_norm(x, torch.zeros(4), torch.ones(4)),
        lambda: F.batch_norm(x, None, None, training=True),
    ],
    "binary_cross_entropy_with_logits": [
        lambda: F.binary_cross_entropy_with_logits(x, torch.ones(3, 4), torch.ones(4), pos_weight=torch.ones(4))
    ],
    "block_diag": [lambda: torch.block_diag(x, x)],
    "broadcast_tensors": [lambda: torch.broadcast_tensors(x, x[0])],
    "cartesian_prod": [lambda: torch.cartesian_prod(x[0], x[1])],
    "cdist": [lambda: torch.cdist(x, x)],
    "celu": [lambda: F.celu(x), lambda: F.celu(x.clone(), inplace=True)],
    "chain_matmul": [lambda: torch.chain_matmul(x, x.T, x)],
    "cosine_embedding_loss": [lambda: F.cosine_embedding_loss(x, x, sign)],
    "cross_entropy": [lambda: F.cross_entropy(x, target, torch.ones(4), label_smoothing=0.1)],
    "ctc_loss": [
        lambda: F.ctc_loss(
            torch.ones(5, 1, 3).log_softmax(2), torch.ones(1, 2, dtype=torch.long), torch.tensor([5]), torch.tensor([2])
        )
    ],
    "dropout": [lambda: F.dropout(x), lambda: F.dropout(x.clone(), inplace=True), lambda: F.dropout(x, training=False)],
    "dropout2d": [lambda: F.dropout2d(image), lambda: F.dropout2d(image.clone(), inplace=True)],
    "einsum": [
        lambda: torch.einsum("ij,kj->ik", x, x),
        lambda: torch.einsum("ij,kj,kl->il", x, x, x),
        lambda: torch.einsum(x, [0, 1], x, [2, 1]),
    ],
    "elu": [lambda: F.elu(x), lambda: F.elu(x.clone(), inplace=True)],
    "feature_alpha_dropout": [lambda: F.feature_alpha_dropout(image, training=True)],
    "fold": [lambda: F.fold(torch.ones(1, 4, 9), (4, 4), (2, 2))],
    "glu": [lambda: F.glu(x)],
    "grid_sample": [lambda: F.grid_sample(image, torch.zeros(1, 2, 2, 2), align_corners=False)],
    "group_norm": [lambda: F.group_norm(signal, 1, torch.ones(2), torch.ones(2))],
    "hardsigmoid": [lambda: F.hardsigmoid(x), lambda: F.hardsigmoid(x.clone(), True)],
    "hardswish": [lambda: F.hardswish(x), lambda: F.hardswish(x.clone(), True)],
    "hardtanh": [lambda: F.hardtanh(x), lambda: F.hardtanh(x.clone(), inplace=True)],
    "hinge_embedding_loss": [lambda: F.hinge_embedding_loss(x, torch.ones(3, 4))],
    "instance_norm": [lambda: F.instance_norm(signal), lambda: F.instance_norm(signal, torch.ones(2), torch.ones(2))],
    "interpolate": [
        *(partial(F.interpolate, image, scale_factor=2, mode=mode) for mode in ("nearest", "nearest-exact", "area")),
        *(partial(F.interpolate, image, size=5, mode=mode) for mode in ("bilinear", "bicubic")),
        *(partial(F.interpolate, image, size=5, mode=mode, antialias=True) for mode in ("bilinear", "bicubic")),
        lambda: F.interpolate(image, scale_factor=0.6, recompute_scale_factor=True),
        lambda: F.interpolate(signal, 5, mode="linear"),
        lambda: F.interpolate(volume, 5, mode="trilinear"),
    ],
    "istft": [lambda: torch.ones(5, 5, dtype=torch.cfloat).istft(8, window=torch.ones(8))],
    "layer_norm": [lambda: F.layer_norm(x, (4,), torch.ones(4), torch.ones(4))],
    "leaky_relu": [lambda: F.leaky_relu(x), lambda: F.leaky_relu(x.clone(), inplace=True)],
    "log_softmax": [lambda: F.log_softmax(x, 1), lambda: F.log_softmax(x, 1, dtype=torch.float64)],
    "lu": [lambda: torch.lu(x), lambda: torch.lu(x, get_infos=True), lambda: x.lu()],
    "margin_ranking_loss": [lambda: F.margin_ranking_loss(x[:, 0], x[:, 1], sign)],
    "max_pool1d": [lambda: F.max_pool1d(signal, 2)],
    "max_pool1d_with_indices": [lambda: F.max_pool1d(signal, 2, return_indices=True)],
    "max_pool2d": [lambda: F.max_pool2d(image, 2), lambda: nn.MaxPool2d(2)(image)],
    "max_pool2d_with_indices": [lambda: F.max_pool2d(image, 2, return_indices=True)],
    "max_pool3d": [lambda: F.max_pool3d(volume, 2)],
    "max_pool3d_with_indices": [lambda: F.max_pool3d(volume, 2, return_indices=True)],
    "max_unpool2d": [lambda: unpool(F.max_pool2d, F.max_unpool2d, 8, 8)],
    "max_unpool3d": [lambda: unpool(F.max_pool3d, F.max_unpool3d, 8, 8, 8)],
    "meshgrid": [lambda: torch.meshgrid(x[0], x[1], indexing="ij")],
    "mish": [lambda: F.mish(x), lambda: F.mish(x.clone(), inplace=True)],
    "multi_margin_loss": [lambda: F.multi_margin_loss(x, target, weight=torch.ones(4))],
    "multilabel_margin_loss": [lambda: F.multilabel_margin_loss(x, torch.zeros(3, 4, dtype=torch.long))],
    "nll_loss": [lambda: F.nll_loss(x, target, torch.ones(4))],
    "norm": [
        *(partial(torch.norm, x, p=p, dim=dim) for p in ("fro", 2, 1.5) for dim in (None, 0, (0, 1))),
        lambda: torch.norm(x, p="nuc"),
        lambda: torch.norm(x.to_sparse()),
        lambda: x.norm(),
        lambda: x.norm("nuc", dim=(0, 1)),
    ],
    "pad": [
        lambda: F.pad(x, (1, 1)),
        *(partial(F.pad, signal, (1, 1), mode=mode) for mode in ("reflect", "replicate", "circular")),
    ],
    "poisson_nll_loss": [lambda: F.poisson_nll_loss(x, torch.ones(3, 4), full=True)],
    "relu": [lambda: F.relu(x), lambda: F.relu(x.clone(), True)],
    "relu6": [lambda: F.relu6(x), lambda: F.relu6(x.clone(), True)],
    "rms_norm": [lambda: F.rms_norm(x, (4,))],
    "rrelu": [lambda: F.rrelu(x, training=True), lambda: F.rrelu(x.clone(), inplace=True)],
    "selu": [lambda: F.selu(x), lambda: F.selu(x.clone(), True)],
    "silu": [lambda: F.silu(x), lambda: F.silu(x.clone(), True)],
    "soft_margin_loss": [lambda: F.soft_margin_loss(x, torch.ones(3, 4))],
    "softmax": [lambda: F.softmax(x, 1), lambda: F.softmax(x, 1, dtype=torch.float64)],
    "split": [
        *(partial(split, x, size) for split in (torch.split, torch.Tensor.split) for size in (2, [1, 2])),
        lambda: torch.split(x, [1, 3], dim=1),
    ],
    "tensordot": [lambda: torch.tensordot(x, x, dims=([1], [1])), lambda: torch.tensordot(x, x.T, dims=1)],
    "triplet_margin_loss": [lambda: F.triplet_margin_loss(x, x, x, swap=True)],
    "unflatten": [lambda: x.unflatten(1, (2, 2))],
    "unfold": [lambda: F.unfold(image, 2)],
    "unique": [
        *(partial(unique, x, **flags) for unique in (torch.unique, torch.Tensor.unique) for flags in (
            {},
            {"return_inverse": True},
            {"return_counts": True},
            {"return_inverse": True, "return_counts": True, "dim": 0},
            {"dim": 1},
        )),
    ],
    "unique_consecutive": [
        *(partial(unique, x, **flags)
          for unique in (torch.unique_consecutive, torch.Tensor.unique_consecutive)
          for flags in ({}, {"return_inverse": True}, {"return_counts": True}, {"dim": 0})),
    ],
    "__floordiv__": [lambda: x // 2],
    "__rfloordiv__": [lambda: 2 // whole],
    "__rlshift__": [lambda: 1 << whole],
    "__rrshift__": [lambda: 64 >> whole],
    "__rmatmul__": [lambda: torch.Tensor.__rmatmul__(x, torch.ones(2, 3))],
    "__rmod__": [lambda: 7 % whole],
    "__rpow__": [lambda: 2**x],
    "__rsub__": [lambda: 1 - x],
    "__reversed__": [lambda: torch.Tensor.__reversed__(x), lambda: torch.Tensor.__reversed__(x[0, 0])],
    "__array_wrap__": [lambda: x.__array_wrap__(np.ones(3)), lambda: x.__array_wrap__(np.ones(3, dtype=bool))],
    "pow": [lambda: x**2],
    "pow_": [lambda: torch.Tensor.__ipow__(x.clone(), 2)],
}  # fmt: skip
