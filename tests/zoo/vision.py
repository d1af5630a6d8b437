"""Models of torchvision and timm, as published, with random weights and small inputs."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

Made = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]

# What tells a small variant of an architecture from a large one, smallest first.
SMALL = "test atto femto pico zepto nano lite xxs micro tiny xtiny xs mini small s0 b0 t0 m0 _s 18 26 32 medium".split()


def torchvision_models() -> Iterator[tuple[str, Callable[[], Made]]]:
    """Classification, segmentation, detection and video models, of which none needs a compiled operator but nms."""
    define_operators()
    from torchvision import models

    for module, kind in (
        (models, "classification"),
        (models.segmentation, "segmentation"),
        (models.detection, "detection"),
        (models.video, "video"),
    ):
        for name in models.list_models(module):
            yield f"torchvision {kind}: {name}", _torchvision_maker(name, kind)


def define_operators() -> None:
    """Give torch what torchvision's compiled operators are to it; without their names it can't be imported.

    Detection calls one that torchvision has no Python for, ``nms``; here it is written in plain torch.
    """
    global _library
    if _library is None:
        _library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            _library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _library.impl("nms", nms, "CPU")
        importlib.import_module("torchvision.ops")
        modules = sys.modules  # for `torchvision.ops.roi_align` is the function
        modules["torchvision.ops.boxes"]._assert_has_ops = lambda: None
        aligning = modules["torchvision.ops.roi_align"]
        aligning._roi_align = aligning._roi_align.__wrapped__  # it would be compiled when it is first called


_library: torch.library.Library | None = None


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Which boxes stay when each that overlaps a better one too much is dropped, the best first."""
    corner, other = boxes[:, :2], boxes[:, 2:]
    areas = (other - corner).prod(1)
    left, kept = scores.argsort(descending=True, stable=True), []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        overlap = (torch.minimum(other[left], other[best]) - torch.maximum(corner[left], corner[best])).clamp(0).prod(1)
        left = left[overlap <= iou_threshold * (areas[left] + areas[best] - overlap)]
    return torch.stack(kept) if kept else scores.new_zeros(0, dtype=torch.int64)


def _torchvision_maker(name: str, kind: str) -> Callable[[], Made]:
    def make() -> Made:
        from torchvision import models

        options: dict[str, Any] = {"weights": None}
        if kind in ("segmentation", "detection"):
            options["weights_backbone"] = None
        if name in ("inception_v3", "googlenet"):
            options["init_weights"] = False
        model = models.get_model(name, **options)
        if kind == "detection":
            if hasattr(model, "rpn"):
                model.rpn._post_nms_top_n["testing"] = 4  # each of a thousand boxes is cut out of the features
            return model, ([torch.rand(3, 64, 64)],), {}
        if kind == "video":
            size = 224 if name.startswith(("mvit", "s3d")) else 64
            return model, (torch.randn(1, 3, 16, size, size),), {}
        size = 224 if re.match("vit_|maxvit", name) else 96 if name.startswith("inception") else 64
        return model, (torch.randn(1, 3, size, size),), {}

    return make


def timm_models() -> Iterator[tuple[str, Callable[[], Made]]]:
    """One architecture of each family: the smallest by its name of those in one file whose names begin alike."""
    define_operators()
    import timm

    for module in timm.list_modules():
        families: dict[str, list[str]] = {}
        for name in timm.list_models(module=module):
            families.setdefault(re.match("[a-z]+", name).group(), []).append(name)  # type: ignore[union-attr]
        for names in families.values():
            name = min(names, key=_size)
            yield f"timm: {name}", _timm_maker(name)


def _size(name: str) -> tuple[int, int, str]:
    parts = re.split("[_.]", name)
    ranks = [i for i, mark in enumerate(SMALL) if mark in parts or name.endswith(mark)]
    numbers = [int(n) for n in re.findall(r"\d+", name)]
    return min(ranks, default=len(SMALL)), sum(numbers), name


def _timm_maker(name: str) -> Callable[[], Made]:
    def make() -> Made:
        import timm

        for options in ({"img_size": 64}, {}):
            try:
                model = timm.create_model(name, pretrained=False, **options)
            except (TypeError, AssertionError, ValueError, RuntimeError):
                continue
            sizes = [64] if options else [64, 96, 128, model.default_cfg["input_size"][-1]]
            for size in sizes:
                x = torch.randn(1, model.default_cfg["input_size"][0], size, size)
                try:
                    with torch.no_grad():
                        model.eval()(x)
                except (TypeError, AssertionError, ValueError, RuntimeError, IndexError):
                    continue
                return model, (x,), {}
        raise RuntimeError(f"{name} could not be built")

    return make
