"""Calls of single functions of torch, in all kinds of circumstances: each is a pass of one or a few operations.

    FUNCTIONS["where, nothing chosen"]      # (function, inputs)

Many of them hide what an argument does: behind a zero, NaN, a bound, a mask or a single element.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_generator = torch.Generator().manual_seed(0)


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=_generator)


X, Y = _random(3, 4), _random(3, 4)
SQUARE = _random(4, 4)
POSITIVE = SQUARE @ SQUARE.T + torch.eye(4)
ZEROS, ONES = torch.zeros(3, 4), torch.ones(3, 4)
NAN = torch.full((3, 4), torch.nan)
SOME_NAN = torch.where(X > 0, X, torch.nan)
INF = torch.full((3, 4), torch.inf)
NOTHING, ALL = torch.zeros(3, 4, dtype=torch.bool), torch.ones(3, 4, dtype=torch.bool)
MASK = X > 0
INDEX = torch.tensor([[0, 2, 1, 1], [2, 2, 0, 0], [1, 0, 2, 1]])
IDS = torch.tensor([1, 0, 2])
IMAGE = _random(2, 3, 6, 6)
SEQUENCE = _random(2, 5, 4)
TABLE = _random(5, 4)

Case = tuple[Callable[..., Any], tuple[Tensor, ...]]

_ARITHMETIC: dict[str, Case] = {
    "add": (torch.add, (X, Y)),
    "add, alpha of zero": (lambda x, y: torch.add(x, y, alpha=0), (X, Y)),
    "add, infinity": (torch.add, (X, INF)),
    "add, all by keyword": (lambda x, y: torch.add(input=x, other=y), (X, Y)),
    "sub, reflected": (lambda x: 1 - x, (X,)),
    "sub, of a huge number": (lambda x: x - 1e30, (X,)),
    "mul, zeros": (torch.mul, (X, ZEROS)),
    "mul, number zero": (lambda x: x * 0, (X,)),
    "mul, NaN": (torch.mul, (X, NAN)),
    "mul, some NaN": (torch.mul, (X, SOME_NAN)),
    "mul, integers and zeros": (lambda x: x * torch.zeros(3, dtype=torch.long), (IDS,)),
    "div": (torch.div, (X, Y)),
    "div, by infinity": (torch.div, (X, INF)),
    "div, zeros": (torch.div, (ZEROS, Y)),
    "div, NaN": (torch.div, (NAN, Y)),
    "floor_divide": (lambda x, y: torch.floor_divide(x, y.abs() * 100), (X.abs(), Y)),
    "remainder": (lambda x: x % 2, (X,)),
    "fmod, integers": (lambda x: torch.fmod(x, 5), (IDS,)),
    "pow": (lambda x, y: torch.pow(x.abs(), y), (X, Y)),
    "pow, of one": (torch.pow, (ONES, X)),
    "pow, to zero": (lambda x: x**0, (X,)),
    "pow, to zeros": (torch.pow, (X, ZEROS)),
    "addcmul, value of zero": (lambda x, y: torch.addcmul(x, x.sin(), y, value=0), (X, Y)),
    "addcdiv": (lambda x, y: torch.addcdiv(x, y, y.abs() + 1), (X, Y)),
    "lerp, weight of zero": (lambda x, y: torch.lerp(x, y, 0.0), (X, Y)),
    "lerp, equal ends": (lambda x, w: torch.lerp(x, x.clone(), w), (X, Y)),
    "hypot": (torch.hypot, (X, Y)),
    "atan2, zeros": (torch.atan2, (ZEROS, Y.abs())),
    "logaddexp, infinity": (torch.logaddexp, (X, INF)),
    "xlogy, zeros": (torch.xlogy, (ZEROS, Y.abs())),
    "copysign": (torch.copysign, (X, Y)),
    "heaviside": (torch.heaviside, (X, Y)),
    "nextafter": (torch.nextafter, (X, Y)),
    "ldexp": (lambda x, n: torch.ldexp(x, n), (X, INDEX)),
    "float_power": (lambda x: torch.float_power(x.abs(), 2), (X,)),
    "gcd": (torch.gcd, (INDEX, INDEX + 4)),
    "bitwise_and, zeros": (lambda x: x & 0, (INDEX,)),
    "shift": (lambda x: x << 2, (INDEX,)),
    "true division in place": (lambda x, y: x.clone().div_(y), (X, Y)),
    "square root of a negative": (torch.sqrt, (-X.abs() - 1,)),
    "log of zero": (torch.log, (ZEROS,)),
    "reciprocal of zero": (torch.reciprocal, (ZEROS,)),
    "add, with out": (lambda x, y: torch.add(x, y, out=torch.empty(3, 4)), (X, Y)),
    "complex product": (lambda x, y: torch.complex(x, y) * torch.complex(y, x), (X, Y)),
    "angle of positives": (torch.angle, (X.abs() + 1,)),
    "real and imaginary part": (lambda x, y: torch.complex(x, y).real + torch.complex(x, y).imag, (X, Y)),
    "view_as_complex": (lambda x: torch.view_as_real(torch.view_as_complex(x.reshape(3, 2, 2))), (X,)),
    "fft": (lambda x: torch.fft.rfft(x), (X,)),
    "inverse fft": (lambda x: torch.fft.irfft(torch.fft.rfft(x)), (X,)),
}

_BOUNDS: dict[str, Case] = {
    "clamp, numbers": (lambda x: x.clamp(-1e-3, 1e-3), (X,)),
    "clamp, equal bounds": (lambda x: x.clamp(1.0, 1.0), (X,)),
    "clamp, the bound decides": (lambda x: torch.clamp(x + 9, x - 1, x + 1), (X,)),
    "clamp, by keyword": (lambda x, y: torch.clamp(x, min=y), (X, Y - 99)),
    "clip, the lower bound decides": (lambda x, y: torch.clip(x, y), (X, Y + 99)),
    "minimum": (torch.minimum, (X, Y)),
    "maximum, one side": (torch.maximum, (X, Y + 99)),
    "fmax, NaN": (torch.fmax, (X, NAN)),
    "relu, nothing positive": (torch.relu, (-X.abs(),)),
    "relu, in place": (lambda x: F.relu(x.sin(), inplace=True), (X,)),
    "hardtanh, saturated": (F.hardtanh, (X + 99,)),
    "sigmoid, saturated": (torch.sigmoid, (X.abs() * 1e4 + 1e4,)),
    "tanh, saturated": (torch.tanh, (X * 0 + 1e4,)),
    "threshold": (lambda x: F.threshold(x, 5.0, 0.0), (X,)),
    "hardshrink, nothing left": (lambda x: F.hardshrink(x, 99.0), (X,)),
    "softshrink": (lambda x: F.softshrink(x), (X,)),
    "prelu, nothing negative": (F.prelu, (X.abs(), torch.ones(4))),
    "sign": (torch.sign, (X,)),
    "floor": (torch.floor, (X.abs() * 1e-3,)),
    "round": (torch.round, (X * 1e-3,)),
    "isnan": (torch.isnan, (X,)),
    "isfinite": (torch.isfinite, (X,)),
    "nan_to_num": (torch.nan_to_num, (SOME_NAN,)),
    "nan_to_num, NaN alone": (torch.nan_to_num, (NAN,)),
    "signbit": (torch.signbit, (X.abs(),)),
    "greater": (lambda x: x > 50, (X,)),
    "equal elements": (torch.eq, (INDEX, INDEX)),
    "isclose": (torch.isclose, (X, X + 1)),
    "logical_or, all": (lambda x: torch.logical_or(x > 0, ALL), (X,)),
    "logical_and, nothing": (lambda x: torch.logical_and(x > 0, NOTHING), (X,)),
    "logical_not": (torch.logical_not, (X,)),
    "isin": (lambda x: torch.isin(x, torch.tensor([9, 8])), (INDEX,)),
    "bucketize": (lambda x: torch.bucketize(x, torch.tensor([5.0, 6.0])), (X,)),
    "searchsorted": (lambda x: torch.searchsorted(x.sort().values, torch.tensor([[9.0], [9.0], [9.0]])), (X,)),
    "histc": (lambda x: torch.histc(x, 4, -1.0, 1.0), (X,)),
}

_CHOICES: dict[str, Case] = {
    "where": (lambda m, x, y: torch.where(m, x, y), (MASK, X, Y)),
    "where, nothing chosen": (lambda m, x, y: torch.where(m, x, y), (NOTHING, X, Y)),
    "where, equal choices": (lambda m, x: torch.where(m, x, x.clone()), (MASK, X)),
    "masked_fill, nothing masked": (lambda x, m: x.masked_fill(m, 2.0), (X, NOTHING)),
    "masked_fill, all masked": (lambda x, m: x.masked_fill(m, 2.0), (X, ALL)),
    "masked_fill in place, nothing masked": (lambda x, m: (x + 1).masked_fill_(m, 0.0), (X, NOTHING)),
    "masked_select": (torch.masked_select, (X, MASK)),
    "masked_select, nothing": (torch.masked_select, (X, NOTHING)),
    "masked_scatter": (lambda x, m, y: x.masked_scatter(m, y), (X, MASK, Y)),
    "setitem by a mask, nothing masked": (lambda x, m: _set(x, m, 0.0), (X, NOTHING)),
    "setitem by a mask, zeros": (lambda x, m: _set(x * 0, m, 0.0), (X, MASK)),
    "setitem, all overwritten": (lambda x, y: _set(x, slice(None), y), (X, Y)),
    "setitem, by index": (lambda x, i: _set(x, i, 0.0), (X, IDS)),
    "setitem, number with a tensor": (lambda x, y: _set(x, (0, 1), y.sum()), (X, Y)),
    "getitem by a mask": (lambda x, m: x[m], (X, MASK)),
    "getitem by index": (lambda x, i: x[i], (X, IDS)),
    "getitem by an index of zeros": (lambda x, i: x[i * 0], (X, IDS)),
    "getitem up to a length": (lambda x, n: x[: n.sum()], (X, IDS)),
    "index_select": (lambda x, i: torch.index_select(x, 0, i), (X, IDS)),
    "index_select, all alike": (lambda x, i: torch.index_select(x * 0, 0, i), (X, IDS)),
    "gather": (lambda x, i: torch.gather(x, 0, i), (X, INDEX)),
    "gather, by keyword": (lambda x, i: torch.gather(input=x, dim=0, index=i), (X, INDEX)),
    "take": (torch.take, (X, INDEX)),
    "take_along_dim": (lambda x, i: torch.take_along_dim(x, i, 0), (X, INDEX)),
    "scatter": (lambda x, i, y: torch.scatter(x, 0, i, y), (X, INDEX, Y)),
    "scatter_add onto zeros": (lambda i, y: torch.zeros(3, 4).scatter_add_(0, i, y), (INDEX, Y)),
    "scatter_reduce, amax": (lambda i, y: torch.zeros(3, 4).scatter_reduce(0, i, y, "amax"), (INDEX, -Y.abs())),
    "scatter_reduce, amax without self": (
        lambda i, y: torch.zeros(3, 4).scatter_reduce(0, i, y, "amax", include_self=False),
        (INDEX, Y),
    ),
    "scatter_reduce, product onto zeros": (
        lambda i, y: torch.zeros(3, 4).scatter_reduce(0, i, y, "prod"),
        (INDEX, Y),
    ),
    "index_add, zeros": (lambda x, i, y: x.index_add(0, i, y * 0), (X, IDS, Y)),
    "index_copy": (lambda x, i, y: x.index_copy(0, i, y), (X, IDS, Y)),
    "index_fill": (lambda x, i: x.index_fill(0, i, 1.0), (X, IDS)),
    "index_put": (lambda x, i, y: x.index_put((i,), y, accumulate=True), (X, IDS, Y)),
    "index_reduce": (lambda x, i, y: x.index_reduce(0, i, y, "prod"), (X, IDS, Y)),
    "put": (lambda x, i, y: x.put(i, y), (X, INDEX, Y)),
    "embedding": (F.embedding, (IDS, TABLE)),
    "embedding, all alike": (lambda i, t: F.embedding(i, t * 0), (IDS, TABLE)),
    "embedding_bag": (lambda i, t: F.embedding_bag(i, t, torch.tensor([0, 2])), (IDS, TABLE)),
    "embedding_bag, offsets computed": (
        lambda i, t, o: F.embedding_bag(i, t, o + 0),
        (IDS, TABLE, torch.tensor([0, 2])),
    ),
    "one_hot": (lambda i: F.one_hot(i, 5), (IDS,)),
    "bincount": (torch.bincount, (IDS,)),
    "repeat_interleave": (lambda x, n: torch.repeat_interleave(x, n, 0), (X, IDS)),
    "tensor_split": (lambda x, i: torch.tensor_split(x, i), (X, torch.tensor([1, 2]))),
    "topk": (lambda x: x.topk(2), (X,)),
    "sort": (lambda x: x.sort(descending=True), (X,)),
    "argmax": (torch.argmax, (X,)),
    "argmax, of one element": (lambda x: x.argmax(-1), (X[:, :1],)),
    "argsort": (torch.argsort, (X,)),
    "unique": (lambda x: torch.unique(x, return_inverse=True), (INDEX,)),
    "nonzero": (torch.nonzero, (MASK,)),
    "tril": (torch.tril, (SQUARE,)),
    "arange, of a length": (lambda n: torch.arange(n.max()), (IDS,)),
    "max, over an axis": (lambda x: x.max(-1), (X,)),
    "any": (torch.any, (MASK,)),
    "all": (torch.all, (MASK,)),
    "cumsum, integers": (lambda x: x.cumsum(0), (INDEX,)),
    "segment_reduce": (lambda x, n: torch.segment_reduce(x, "sum", lengths=n), (X, torch.tensor([1, 2]))),
}

_PRODUCTS: dict[str, Case] = {
    "matmul": (torch.matmul, (X, SQUARE)),
    "matmul, NaN": (lambda x, y: x @ y, (NAN, SQUARE)),
    "matmul, zeros": (lambda x, y: x @ y, (ZEROS, SQUARE)),
    "mm, all by keyword": (lambda x, y: torch.mm(input=x, mat2=y), (X, SQUARE)),
    "bmm": (torch.bmm, (SEQUENCE, SEQUENCE.mT.contiguous())),
    "addmm, beta of zero": (lambda b, x, y: torch.addmm(b, x, y, beta=0), (X, X, SQUARE)),
    "baddbmm, of uninitialised memory": (
        lambda x: torch.baddbmm(torch.empty(2, 5, 5), x, x.mT, beta=0, alpha=0.5),
        (SEQUENCE,),
    ),
    "baddbmm, NaN": (lambda x: torch.baddbmm(x @ x.mT, x * torch.nan, x.mT), (SEQUENCE,)),
    "einsum": (lambda x, y: torch.einsum("ij,jk->ik", x, y), (X, SQUARE)),
    "linear": (F.linear, (X, SQUARE, torch.ones(4))),
    "linear, zero weight": (F.linear, (X, SQUARE * 0, torch.ones(4))),
    "linear, NaN bias": (F.linear, (X, SQUARE, torch.full((4,), torch.nan))),
    "bilinear": (F.bilinear, (X, Y, _random(2, 4, 4))),
    "conv1d": (F.conv1d, (SEQUENCE, _random(2, 5, 3))),
    "conv2d, zero weight": (F.conv2d, (IMAGE, torch.zeros(2, 3, 3, 3))),
    "conv_transpose2d": (F.conv_transpose2d, (IMAGE, _random(3, 2, 3, 3))),
    "outer": (torch.outer, (X[0], Y[0])),
    "cross": (lambda x, y: torch.linalg.cross(x, y), (X[:, :3], Y[:, :3])),
    "cosine similarity, zeros": (lambda x, y: F.cosine_similarity(x, y, dim=-1), (ZEROS, Y)),
    "cosine similarity, zeros of one row": (lambda m, y: F.cosine_similarity(m[None], y[:, None], dim=-1), (ZEROS, Y)),
    "cdist": (torch.cdist, (X, Y)),
    "normalize, zeros": (F.normalize, (ZEROS,)),
    "solve": (torch.linalg.solve, (POSITIVE, SQUARE)),
    "cholesky": (torch.linalg.cholesky, (POSITIVE,)),
    "inverse": (torch.linalg.inv, (POSITIVE,)),
    "determinant": (torch.linalg.det, (POSITIVE,)),
    "eigenvalues": (torch.linalg.eigvalsh, (POSITIVE,)),
    "singular values": (torch.linalg.svdvals, (X,)),
    "norm, zeros": (torch.linalg.vector_norm, (ZEROS,)),
    "prod, with zeros": (lambda x: x.relu().prod(), (X,)),
    "attention": (F.scaled_dot_product_attention, (SEQUENCE, SEQUENCE + 1, SEQUENCE - 1)),
    "attention, a row fully masked": (
        lambda x, m: F.scaled_dot_product_attention(x, x, x, attn_mask=m),
        (SEQUENCE, torch.arange(5)[:, None].expand(5, 5) > 0),
    ),
    "attention, one key": (lambda x, y: F.scaled_dot_product_attention(x, y[:, :1], y[:, :1]), (SEQUENCE, SEQUENCE)),
}

_NETWORKS: dict[str, Case] = {
    "softmax, all by keyword": (lambda x: torch.softmax(input=x, dim=-1), (X,)),
    "softmax, one element": (lambda x: x.softmax(-1), (X[:, :1],)),
    "softmax, a row of minus infinity": (lambda x: (x - torch.inf).softmax(-1), (X,)),
    "log_softmax": (lambda x: F.log_softmax(x, -1), (X,)),
    "layer_norm": (lambda x: F.layer_norm(x, (4,)), (X,)),
    "layer_norm, zero weight": (lambda x, w: F.layer_norm(x, (4,), w), (X, torch.zeros(4))),
    "layer_norm, one element": (lambda x: F.layer_norm(x, (1,)), (X[:, :1],)),
    "group_norm": (lambda x: F.group_norm(x, 3), (IMAGE,)),
    "batch_norm, training": (lambda x: F.batch_norm(x, torch.zeros(4), torch.ones(4), training=True), (X,)),
    "batch_norm, statistics": (lambda x, m, v: F.batch_norm(x, m, v), (X, torch.zeros(4), torch.ones(4))),
    "batch_norm, input is the mean": (lambda x, v: F.batch_norm(x, x[0], v), (ONES, torch.ones(4))),
    "rms_norm": (lambda x: F.rms_norm(x, (4,)), (X,)),
    "dropout": (F.dropout, (X,)),
    "dropout, of everything": (lambda x: F.dropout(x, 1.0), (X,)),
    "dropout, not training": (lambda x: F.dropout(x, 0.5, training=False), (X,)),
    "max_pool2d": (lambda x: F.max_pool2d(x, 2, return_indices=True), (IMAGE,)),
    "max_unpool2d": (lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2), (IMAGE,)),
    "avg_pool2d": (lambda x: F.avg_pool2d(x, 2), (IMAGE,)),
    "adaptive_avg_pool2d": (lambda x: F.adaptive_avg_pool2d(x, 1), (IMAGE,)),
    "fractional_max_pool2d, samples given": (
        lambda x, s: F.fractional_max_pool2d(x, 2, output_size=3, _random_samples=s),
        (IMAGE, torch.rand(2, 3, 2)),
    ),
    "interpolate": (lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear"), (IMAGE,)),
    "grid_sample": (lambda x, g: F.grid_sample(x, g.tanh(), align_corners=False), (IMAGE, _random(2, 4, 4, 2))),
    "grid_sample, all alike": (lambda x, g: F.grid_sample(x * 0, g, align_corners=False), (IMAGE, _random(2, 4, 4, 2))),
    "affine_grid": (lambda t: F.affine_grid(t, [2, 3, 4, 4], align_corners=False), (_random(2, 2, 3),)),
    "pad": (lambda x: F.pad(x, (1, 1), value=0.0), (X,)),
    "unfold": (lambda x: F.unfold(x, 2), (IMAGE,)),
    "fold": (lambda x: F.fold(F.unfold(x, 2), (6, 6), 2), (IMAGE,)),
    "pixel_shuffle": (lambda x: F.pixel_shuffle(x.repeat(1, 4, 1, 1), 2), (IMAGE,)),
    "glu": (F.glu, (X,)),
    "gelu": (F.gelu, (X,)),
    "gumbel_softmax": (F.gumbel_softmax, (X,)),
    "multi_head_attention": (
        lambda x, w, o: F.multi_head_attention_forward(
            x, x, x, 4, 2, w, torch.zeros(12), None, None, False, 0.0, o, torch.zeros(4)
        ),
        (SEQUENCE, _random(12, 4), SQUARE),
    ),
}

_LOSSES: dict[str, Case] = {
    "cross_entropy": (F.cross_entropy, (X, IDS)),
    "cross_entropy, all ignored": (lambda x, i: F.cross_entropy(x, i * 0 - 100), (X, IDS)),
    "cross_entropy, some ignored": (F.cross_entropy, (X, torch.tensor([1, -100, 0]))),
    "cross_entropy, one class": (F.cross_entropy, (X[:, :1], IDS * 0)),
    "nll_loss": (F.nll_loss, (X, IDS)),
    "mse_loss, no error": (lambda x: F.mse_loss(x, x.clone()), (X,)),
    "smooth_l1_loss": (F.smooth_l1_loss, (X, Y)),
    "l1_loss": (lambda x, y: F.l1_loss(input=x, target=y), (X, Y)),
    "binary_cross_entropy": (lambda x, y: F.binary_cross_entropy(x.sigmoid(), y.sigmoid()), (X, Y)),
    "binary_cross_entropy, zero weight": (
        lambda x, y: F.binary_cross_entropy(x.sigmoid(), y.sigmoid(), torch.zeros(3, 4)),
        (X, Y),
    ),
    "kl_div": (lambda x, y: F.kl_div(x.log_softmax(-1), y.softmax(-1), reduction="batchmean"), (X, Y)),
    "hinge_embedding_loss": (F.hinge_embedding_loss, (X, Y.sign())),
    "margin_ranking_loss, satisfied": (lambda x, y: F.margin_ranking_loss(x + 99, y, torch.ones(3, 4)), (X, Y)),
    "triplet_margin_loss, satisfied": (lambda a, p, n: F.triplet_margin_loss(a, p, n + 1e3), (X, X + 0.1, Y)),
    "cosine_embedding_loss": (lambda x, y: F.cosine_embedding_loss(x, y, torch.ones(3)), (X, Y)),
    "multi_margin_loss, satisfied": (lambda x, i: F.multi_margin_loss(F.one_hot(i, 4) * 9.0 + x * 0, i), (X, IDS)),
    "multilabel_margin_loss": (F.multilabel_margin_loss, (X, INDEX)),
    "soft_margin_loss": (F.soft_margin_loss, (X, Y.sign())),
    "gaussian_nll_loss": (lambda x, y: F.gaussian_nll_loss(x, y, torch.full((3, 4), 0.5)), (X, Y)),
    "poisson_nll_loss": (F.poisson_nll_loss, (X, Y.abs())),
    "ctc_loss": (
        lambda x, i: F.ctc_loss(
            x.transpose(0, 1).log_softmax(-1), i, torch.tensor([5, 4]), torch.tensor([2, 1]), zero_infinity=True
        ),
        (SEQUENCE, torch.tensor([[1, 2], [3, 1]])),
    ),
    "ctc_loss, lengths computed": (
        lambda x, i, n: F.ctc_loss(x.transpose(0, 1).log_softmax(-1), i, n + 1, n - 2),
        (SEQUENCE, torch.tensor([[1, 2], [3, 1]]), torch.tensor([4, 3])),
    ),
}

_MAKERS: dict[str, Case] = {
    "zeros_like": (lambda x: torch.zeros_like(x) + x, (X,)),
    "new_zeros": (lambda x: x.new_zeros(3, 4) + x, (X,)),
    "new, then copied into": (lambda x: x.new(x.size()).copy_(x), (X,)),
    "new_tensor": (lambda x: x.new_tensor([1.0, 2.0, 3.0, 4.0]) * x, (X,)),
    "empty_like, then drawn": (lambda x: torch.empty_like(x).uniform_() + x, (X,)),
    "empty, then filled": (lambda x: torch.empty(3, 4).fill_(2.0) * x, (X,)),
    "full_like": (lambda x: torch.full_like(x, 2.0) * x, (X,)),
    "rand_like": (lambda x: torch.rand_like(x) + x, (X,)),
    "normal, of a mean and a deviation": (lambda x, y: torch.normal(x, y.abs()), (X, Y)),
    "bernoulli": (lambda x: torch.bernoulli(x.sigmoid()), (X,)),
    "bernoulli, with a probability": (lambda x: torch.bernoulli(x, p=0.5), (X,)),
    "bernoulli in place, with a tensor": (lambda x: torch.empty_like(x).bernoulli_(x.sigmoid()), (X,)),
    "multinomial": (lambda x: torch.multinomial(x.softmax(-1), 2), (X,)),
    "poisson": (lambda x: torch.poisson(x.abs()), (X,)),
    "exponential": (lambda x: x.clone().exponential_(), (X,)),
    "fill, with a tensor": (lambda x: x.clone().fill_(x.sum()), (X,)),
    "copy": (lambda x, y: x.clone().copy_(y), (X, Y)),
    "zero": (lambda x: x.clone().zero_() + x, (X,)),
    "expand_as": (lambda x, y: x[:1].expand_as(y) + y, (X, Y)),
    "view_as": (lambda x, y: x.reshape(-1).view_as(y), (X, Y)),
    "type_as": (lambda i, x: i.type_as(x) + 1, (INDEX, X)),
    "to, like another": (lambda i, x: i.to(x), (INDEX, X)),
    "tensor of no elements": (lambda x: torch.cat([x, x[:, :0].exp()], 1), (X,)),
    "cat": (lambda x, y: torch.cat([x, y]), (X, Y)),
    "cat, all by keyword": (lambda x, y: torch.cat(tensors=[x, y], dim=1), (X, Y)),
    "stack, of integers": (lambda i: torch.stack([i, i + 1]), (INDEX,)),
    "meshgrid": (lambda i: torch.meshgrid(i, i + 1, indexing="ij"), (IDS,)),
    "broadcast_tensors": (lambda x: torch.broadcast_tensors(x, x[:1]), (X,)),
    "view, of zeros": (lambda i: (i * 0).view(-1), (INDEX,)),
    "transpose of integers": (lambda i: i.T, (INDEX,)),
    "to double": (lambda x: x.double(), (X,)),
    "to long": (lambda x: (x * 1e-3).long(), (X,)),
    "roll": (lambda x: torch.roll(x, 1, 0), (X,)),
    "diag_embed": (lambda x: torch.diag_embed(x), (X,)),
    "complex parts of zeros": (lambda x: torch.polar(x * 0, x), (X,)),
    "resize_as": (lambda x: x.clone().resize_as_(torch.ones(4, 3)), (X,)),
    "detach": (lambda x: x.detach() * 2, (X,)),
    "vmap": (lambda x: torch.vmap(torch.sin)(x) + 1, (X,)),
    "cummax": (lambda x: x.cummax(0), (X,)),
    "median": (lambda x: x.median(-1), (X,)),
    "std, of one element": (lambda x: x.std(-1, correction=0), (X[:, :1],)),
    "var_mean": (lambda x: torch.var_mean(x, -1), (X,)),
    "quantile": (lambda x: torch.quantile(x, torch.tensor([0.2, 0.7])), (X,)),
    "logsumexp": (lambda x: x.logsumexp(-1), (X,)),
    "trapezoid": (lambda x, y: torch.trapezoid(x, y), (X, Y)),
    "igamma": (lambda x, y: torch.special.gammainc(x.abs(), y.abs()), (X, Y)),
    "polygamma": (lambda x: torch.polygamma(1, x.abs()), (X,)),
}


def _set(x: Tensor, index: Any, value: Any) -> Tensor:
    y = x + 0
    y[index] = value
    return y


FUNCTIONS: dict[str, Case] = {
    **_ARITHMETIC,
    **_BOUNDS,
    **_CHOICES,
    **_PRODUCTS,
    **_NETWORKS,
    **_LOSSES,
    **_MAKERS,
}
