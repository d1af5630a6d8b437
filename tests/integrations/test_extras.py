"""A framework that is not installed is named with what to type."""

import importlib
import sys

import pytest

import fastrec


@pytest.mark.parametrize(
    ("integration", "imported", "extra"),
    [
        ("gymnasium", "gymnasium", "gym"),
        ("sb3", "stable_baselines3.common.callbacks", "sb3"),
        ("torchrl", "tensordict", "torchrl"),
        ("lightning", "pytorch_lightning", "lightning"),
        ("tensorboard", "torch.utils.tensorboard", "tensorboard"),
        ("wandb", "wandb", "wandb"),
        ("ray", "ray", "ray"),
    ],
)
def test_a_missing_framework_is_named_with_its_extra(
    integration: str, imported: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"fastrec.integrations.{integration}"
    monkeypatch.setitem(sys.modules, name, None)  # put back afterwards, whether it was there or not
    monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, imported, None)
    package = imported.partition(".")[0]
    message = rf"{name} needs {package}, which is not installed; .*pip install 'fastrec-torch\[{extra}\]'"
    with pytest.raises(ImportError, match=message) as caught:
        importlib.import_module(name)
    assert isinstance(caught.value, fastrec.FastrecError)


def test_stitching_needs_no_framework(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "fastrec.integrations.transformers", raising=False)
    assert importlib.import_module("fastrec.integrations.transformers").stitch.__name__ == "stitch"
