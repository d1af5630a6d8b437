"""``verify`` and ``fastrec verify`` know the histories that were saved."""

import random
from pathlib import Path

import h5py
import pytest
import torch
from torch import nn

from fastrec._errors import DamagedFileError
from fastrec.files import verify
from fastrec.graph import log_forward_pass


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    path = tmp_path / "pass.h5"
    log_forward_pass(model, torch.ones(3, 4)).save(path)
    return path


def test_a_history_has_a_checksum_for_each_tensor(saved: Path) -> None:
    verified = verify(saved)
    assert verified.damage == [] and verified.checksums > 3 and verified.nbytes > 0


def test_flipped_bits_of_values_are_named(saved: Path) -> None:
    with h5py.File(saved) as file:
        spans: list[tuple[str, int, int]] = []
        file.visititems(
            lambda name, item: (
                spans.append((name, item.id.get_offset(), item.nbytes))
                if isinstance(item, h5py.Dataset) and item.nbytes
                else None
            )
        )
    content, chance = saved.read_bytes(), random.Random(0)
    for name, offset, nbytes in spans:
        at = offset + chance.randrange(nbytes)
        saved.write_bytes(content[:at] + bytes([content[at] ^ 1 << chance.randrange(8)]) + content[at + 1 :])
        assert [damage.data_set for damage in verify(saved).damage] == [name]


def test_links_in_a_history_are_damage_and_not_followed(saved: Path) -> None:
    with h5py.File(saved, "r+") as file:
        file["values/other"] = h5py.ExternalLink("/etc/passwd", "/")
    (damage,) = verify(saved).damage
    assert damage.data_set == "values/other" and "a link" in damage.why


def test_other_hdf5_files_are_still_no_recordings(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = [1, 2]
    with pytest.raises(DamagedFileError, match="is an HDF5 file, but not a recording of fastrec"):
        verify(tmp_path / "other.h5")
