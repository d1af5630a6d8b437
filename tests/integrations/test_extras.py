"""A framework that is not installed is named with what to type."""

import importlib
import sys

import pytest

import fastrec


@pytest.mark.parametrize(
    ("integration", "imported", "told"),
    [
        ("gymnasium", "gymnasium", r"gymnasium is needed .* pip install 'fastrec\[gym\]'"),
        ("sb3", "stable_baselines3.common.callbacks", r"stable-baselines3 is .* pip install 'fastrec\[sb3\]'"),
        ("torchrl", "tensordict", r"torchrl is needed .* pip install 'fastrec\[torchrl\]'"),
        ("lightning", "pytorch_lightning", r"pytorch-lightning is .* pip install 'fastrec\[lightning\]'"),
        ("tensorboard", "torch.utils.tensorboard", r"integrations.tensorboard needs .*\[tensorboard\]'"),
        ("wandb", "wandb", r"integrations.wandb needs wandb, .*\[wandb\]'"),
    ],
)
def test_a_missing_framework_is_told_with_its_extra(
    integration: str, imported: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"fastrec.integrations.{integration}"
    monkeypatch.setitem(sys.modules, name, None)  # put back afterwards, whether it was there or not
    monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, imported, None)
    with pytest.raises(ImportError, match=told) as caught:
        importlib.import_module(name)
    assert isinstance(caught.value, fastrec.FastrecError)


def test_stitching_needs_no_framework(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "fastrec.integrations.transformers", raising=False)
    assert importlib.import_module("fastrec.integrations.transformers").stitch.__name__ == "stitch"
