"""What torch calls its ops, and what fastrec calls them: one canonical name for all forms of an op.

    >>> canonical("__rsub__"), canonical("subtract_"), canonical("layer_norm")
    ('sub', 'sub', 'layernorm')

The canonical name is the function's name in lower case without underscores. Where several names mean the same function,
it is the one in torch's plain namespace (`sigmoid`, not `special_expit`; `det`, not `linalg_det`). Functions that exist
only in a namespace have its name in front, as in their `__name__` (`fftrfft`, `linalgqr`, `specialndtr`).

The sets below say what can't be found out about a function without running it: whether it writes, returns no tensor, or
is a Python function around one op. Tests run every function that a mode can see and compare.
"""

from __future__ import annotations

import re

_BINARY = {
    "add": "add",
    "sub": "sub",
    "mul": "mul",
    "matmul": "matmul",
    "div": "div",
    "truediv": "div",
    "floordiv": "floordivide",
    "mod": "remainder",
    "pow": "pow",
    "and": "bitwiseand",
    "or": "bitwiseor",
    "xor": "bitwisexor",
    "lshift": "bitwiseleftshift",
    "rshift": "bitwiserightshift",
}

_UNARY = {"pos": "positive", "invert": "bitwisenot", "inv": "bitwisenot", "reversed": "flip"}

_INPLACE_OPERATORS = {f"__i{name}__" for name in _BINARY}


def canonical(name: str) -> str:
    """The `layer_type` of a function with this raw name: `sub` for `__rsub__` and `subtract_`."""
    known = OPERATORS.get(name)
    if known is not None:
        return known
    key = name.strip("_").lower()
    return ALIASES.get(key) or re.sub(r"[\W_]+", "", key) or "op"


OPERATORS = (
    {f"__{form}{name}__": canonical for name, canonical in _BINARY.items() for form in ("", "r", "i")}
    | {f"__{name}__": canonical for name, canonical in _UNARY.items()}
)  # fmt: skip

# Names without leading and trailing underscores, and the canonical names that they have.
ALIASES = {
    "absolute": "abs",
    "adjoint": "mh",
    "arccos": "acos",
    "arccosh": "acosh",
    "arcsin": "asin",
    "arcsinh": "asinh",
    "arctan": "atan",
    "arctan2": "atan2",
    "arctanh": "atanh",
    "clip": "clamp",
    "concat": "cat",
    "concatenate": "cat",
    "divide": "div",
    "fix": "trunc",
    "ger": "outer",
    "greater": "gt",
    "greater_equal": "ge",
    "less": "lt",
    "less_equal": "le",
    "linalg_det": "det",
    "linalg_diagonal": "diagonal",
    "linalg_householder_product": "orgqr",
    "linalg_inv": "inverse",
    "linalg_matmul": "matmul",
    "linalg_matrix_exp": "matrixexp",
    "linalg_matrix_power": "matrixpower",
    "linalg_pinv": "pinverse",
    "linalg_slogdet": "slogdet",
    "moveaxis": "movedim",
    "multiply": "mul",
    "negative": "neg",
    "not_equal": "ne",
    "row_stack": "vstack",
    "rsub": "sub",
    "special_digamma": "digamma",
    "special_erf": "erf",
    "special_erfc": "erfc",
    "special_erfinv": "erfinv",
    "special_exp2": "exp2",
    "special_expit": "sigmoid",
    "special_expm1": "expm1",
    "special_gammainc": "igamma",
    "special_gammaincc": "igammac",
    "special_gammaln": "lgamma",
    "special_i0": "i0",
    "special_log1p": "log1p",
    "special_log_softmax": "logsoftmax",
    "special_logit": "logit",
    "special_logsumexp": "logsumexp",
    "special_multigammaln": "mvlgamma",
    "special_polygamma": "polygamma",
    "special_psi": "digamma",
    "special_round": "round",
    "special_sinc": "sinc",
    "special_softmax": "softmax",
    "special_xlogy": "xlogy",
    "subtract": "sub",
    "swapaxes": "transpose",
    "swapdims": "transpose",
    "trapz": "trapezoid",
    "true_divide": "div",
    # What the properties `T` and `H` are registered as. Graphs of torch 2.14 and later hold these ops in their place.
    "matrix_h": "h",
    "numpy_t": "t",
    # The same op, which also returns where it found its values.
    "adaptive_max_pool1d_with_indices": "adaptivemaxpool1d",
    "adaptive_max_pool2d_with_indices": "adaptivemaxpool2d",
    "adaptive_max_pool3d_with_indices": "adaptivemaxpool3d",
    "fractional_max_pool2d_with_indices": "fractionalmaxpool2d",
    "fractional_max_pool3d_with_indices": "fractionalmaxpool3d",
    "max_pool1d_with_indices": "maxpool1d",
    "max_pool2d_with_indices": "maxpool2d",
    "max_pool3d_with_indices": "maxpool3d",
}

# Properties of a tensor whose value is computed from its values; all others are facts about it.
TENSOR_PROPERTIES = frozenset({"T", "mT", "H", "mH", "real", "imag"})

# Functions of torch that return no tensor and change no value, in addition to those that start with `is_` or `sym_`.
NO_EVENTS = frozenset(
    """
    size dim ndimension numel nelement stride storage_offset element_size get_device dim_order sparse_dim dense_dim
    storage_type has_names q_scale q_zero_point q_per_channel_axis qscheme _nnz _dimI _dimV _is_view _is_zerotensor
    _nested_tensor_size _nested_tensor_strides _nested_tensor_storage_offsets _use_count
    item tolist equal allclose result_type can_cast promote_types
    __bool__ __nonzero__ __int__ __long__ __float__ __complex__ __index__ __len__ __contains__ __hash__
    __repr__ __format__ __dir__ __reduce__ __reduce_ex__ __setstate__ __dlpack_device__
    backward register_hook register_post_accumulate_grad_hook retain_grad requires_grad_ record_stream
    _clear_non_serializable_cached_data _fix_weakref
    device _assert _set_grad_enabled _enter_autocast _exit_autocast
    cudnn_is_acceptable _use_cudnn_ctc_loss _has_compatible_shallow_copy_type _debug_has_internal_overlap
    """.split()
)

# Functions after which the memory of their argument or result can be written by code that torch doesn't see.
ESCAPES = frozenset(
    """
    numpy __array__ __array_wrap__ __dlpack__ __cuda_array_interface__ data_ptr const_data_ptr mutable_data_ptr
    storage untyped_storage _typed_storage share_memory_ as_tensor asarray frombuffer from_file from_numpy
    from_dlpack apply_ map_ map2_
    """.split()
)

# Functions that write their first argument although their name doesn't end in an underscore.
WRITES = frozenset(
    _INPLACE_OPERATORS
    | {
        "__setitem__",
        "module_load",
        "batch_norm_gather_stats",
        "batch_norm_gather_stats_with_counts",
        "batch_norm_update_stats",
        "fused_moving_avg_obs_fake_quant",
        "rrelu_with_noise",
    }
)

# The argument, by keyword and position, that makes a call write another one of its arguments. Batch norms matter most:
# they change their running statistics without counting up `_version`.
WRITE_FLAGS = {
    "torch.nn.functional.batch_norm": ("training", 5),
    "torch.nn.functional.embedding": ("max_norm", 3),
    "torch.nn.functional.embedding_bag": ("max_norm", 4),
    "torch.nn.functional.instance_norm": ("running_mean", 1),
    "batch_norm": ("training", 5),
    "native_batch_norm": ("training", 5),
    "_native_batch_norm_legit": ("training", 5),
    "cudnn_batch_norm": ("training", 5),
    "miopen_batch_norm": ("training", 5),
    "instance_norm": ("running_mean", 3),
}

# Functions whose name ends in an underscore although they leave the values alone.
NOT_WRITING = frozenset({"requires_grad_", "rename_", "share_memory_", "_coalesced_"})

# Functions of torch.distributed that write an argument, some of them only after they have returned.
COLLECTIVES = frozenset(
    """
    irecv recv broadcast all_reduce all_reduce_coalesced reduce all_gather all_gather_single all_gather_into_tensor
    all_gather_coalesced gather scatter reduce_scatter reduce_scatter_single reduce_scatter_tensor
    all_to_all_single all_to_all
    """.split()
)

# Python functions that run one op, by module; every other one that can be opened is a composite. Two are here by
# decision: `1 / x` is one operator, though torch computes it in two steps, and `embedding` is one lookup, though it
# first renormalises the rows if `max_norm` is given.
ONE_OP = {
    "torch.nn.functional": frozenset(
        """
        _threshold adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool1d_with_indices
        adaptive_max_pool2d adaptive_max_pool2d_with_indices adaptive_max_pool3d adaptive_max_pool3d_with_indices
        affine_grid alpha_dropout batch_norm binary_cross_entropy_with_logits celu cosine_embedding_loss
        cross_entropy ctc_loss dropout dropout2d elu embedding feature_alpha_dropout fold glu grid_sample group_norm
        hardsigmoid hardswish hardtanh hinge_embedding_loss instance_norm interpolate layer_norm leaky_relu
        log_softmax margin_ranking_loss max_pool1d max_pool1d_with_indices max_pool2d max_pool2d_with_indices
        max_pool3d max_pool3d_with_indices max_unpool2d max_unpool3d mish multi_margin_loss multilabel_margin_loss
        nll_loss pad poisson_nll_loss relu relu6 rms_norm rrelu selu silu soft_margin_loss softmax
        triplet_margin_loss unfold
        """.split()
    ),
    "torch.functional": frozenset(
        """
        atleast_1d atleast_2d atleast_3d block_diag broadcast_tensors cartesian_prod cdist chain_matmul einsum lu
        meshgrid norm split tensordot unique unique_consecutive
        """.split()
    ),
    "torch._tensor": frozenset(
        """
        __array__ __array_wrap__ __deepcopy__ __dlpack__ __reversed__
        __floordiv__ __pow__ __ipow__ __rdiv__ __rfloordiv__ __rlshift__ __rmatmul__ __rmod__ __rpow__ __rrshift__
        __rsub__ index istft lu norm pow pow_ resize resize_as share_memory_ split storage unflatten unique
        unique_consecutive
        """.split()
    ),
    "torch.autograd": frozenset({"grad"}),
}
