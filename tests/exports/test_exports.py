"""Recordings in other tools' formats, opened by those tools' own code where it is installed."""

import json
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import nn

import fastrec
from fastrec import CaptureSpec, FastrecError, Recorder, Recording
from fastrec._errors import (
    OptionError,
    RaggedError,
    RecordingExistsError,
    RecordingFileError,
    RecordKeyError,
    StepError,
)
from fastrec.exports import EXPORTERS, OPTIONS, export
from tests.exports.rollout import ACTIONS, OBSERVATIONS, rollout

LENGTHS = [5, 7, 5, 5, 2]
TRANSITIONS = {"observations": OBSERVATIONS, "actions": ACTIONS}


@pytest.fixture(params=["ram", "file"])
def recording(request: pytest.FixtureRequest, tmp_path: Path) -> Recording:
    return rollout(None if request.param == "ram" else tmp_path / "run.h5")


def episodes(recording: Recording, key: str) -> list[np.ndarray[Any, Any]]:
    return [episode[key].numpy() for episode in recording.episodes()]


def test_safetensors_loads_what_was_recorded(recording: Recording, tmp_path: Path) -> None:
    load_file = pytest.importorskip("safetensors.torch").load_file
    export(recording, tmp_path / "run.safetensors", "safetensors")
    found = load_file(tmp_path / "run.safetensors")
    assert set(found) == {":in[0]", "body.1/tanh", "head", ":out"} | {f"steps/{name}" for name in recording.steps}
    for key in (":in[0]", "body.1/tanh", "head", ":out"):
        assert torch.equal(found[key], recording.stack(key))
    assert np.array_equal(found["steps/reward"], recording.steps["reward"])
    assert found["steps/terminated"].dtype is torch.bool


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float64, torch.complex64], ids=str
)
def test_safetensors_keeps_dtypes(tmp_path: Path, dtype: torch.dtype) -> None:
    load_file = pytest.importorskip("safetensors.torch").load_file
    recording = fastrec.record(nn.Linear(3, 5), torch.randn(7, 3), keep_op=True, capture=CaptureSpec(dtype=dtype))
    export(recording, tmp_path / "x.safetensors", "safetensors", keys={"linear_1": "x"}, by="sample")
    (found,) = load_file(tmp_path / "x.safetensors").values()
    wanted = recording.stack("linear_1")[0]
    assert found.dtype is dtype and torch.equal(found.view(torch.uint8), wanted.view(torch.uint8))


def test_safetensors_refuses_what_it_has_no_dtype_for(tmp_path: Path) -> None:
    recording = fastrec.record(nn.Linear(3, 5), torch.ones(7, 3), keep_op=True,
                               capture=CaptureSpec(dtype=torch.complex128))  # fmt: skip
    with pytest.raises(OptionError, match="no dtype for '/linear', which is torch.complex128"):
        export(recording, tmp_path / "x.safetensors", "safetensors")
    assert list(tmp_path.iterdir()) == []


def test_numpy_loads_what_was_recorded(recording: Recording, tmp_path: Path) -> None:
    export(recording, tmp_path / "run.npz", "numpy", keys=["head", "tanh_1"])
    with np.load(tmp_path / "run.npz") as found:
        assert set(found) == {"head", "tanh_1"} | {f"steps/{name}" for name in recording.steps}
        assert np.array_equal(found["tanh_1"], recording.to_numpy("tanh_1"))
        assert np.array_equal(found["steps/action"], recording.steps["action"])


def test_batches_of_other_sizes_are_exported_by_sample(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    with Recorder(model, keep_op=True, capture=CaptureSpec(dtype=torch.bfloat16)) as rec:
        for size in (4, 1, 0, 7):
            model(torch.randn(size, 3))
    with pytest.raises(RaggedError, match="by='sample'"):
        export(rec.recording, tmp_path / "run.npz", "numpy")
    export(rec.recording, tmp_path / "run.npz", "numpy", by="sample")
    wanted = rec.recording.rows("linear_1", by="sample")[:].float()
    assert np.array_equal(np.load(tmp_path / "run.npz")["/linear"], wanted)


def test_minari_opens_what_was_recorded(recording: Recording, tmp_path: Path) -> None:
    minari = pytest.importorskip("minari")
    pytest.importorskip("PIL")
    export(recording, tmp_path / "demo", "minari", dataset_id="mine/demo-v3", **TRANSITIONS)
    dataset = minari.MinariDataset(tmp_path / "demo" / "data")
    assert (dataset.total_episodes, dataset.total_steps, dataset.id) == (5, sum(LENGTHS), "mine/demo-v3")
    assert dataset.observation_space.shape == (3,) and dataset.action_space.shape == (2,)
    recorded = recording.episodes()
    for found, wanted in zip(dataset.iterate_episodes(), recorded, strict=True):
        assert dataset.observation_space.contains(found.observations[0])
        assert np.array_equal(found.observations[:-1], wanted[OBSERVATIONS]) and len(found) == len(wanted)
        assert np.array_equal(found.observations[-1], found.observations[-2])
        assert np.array_equal(found.actions, wanted[ACTIONS])
        assert np.array_equal(found.rewards, wanted.columns["reward"].astype("f4"))
        assert found.terminations.tolist() == [False] * (len(wanted) - 1) + [wanted.terminated]
        assert found.truncations.tolist() == [False] * (len(wanted) - 1) + [not wanted.terminated]
    assert dataset.filter_episodes(lambda episode: len(episode) == 5).total_episodes == 3
    with h5py.File(tmp_path / "demo" / "data" / "main_data.hdf5") as file:
        tanh = [file[f"episode_{i}/activations/body.1.tanh"][:] for i in range(5)]
        assert set(file["episode_0/activations"]) == {"body.1.tanh", "head"}
    assert all(np.array_equal(a, b) for a, b in zip(tanh, episodes(recording, "tanh_1"), strict=True))


def test_minari_knows_discrete_actions(recording: Recording, tmp_path: Path) -> None:
    export(recording, tmp_path / "demo", "minari", keys=[], observations=OBSERVATIONS, actions="action")
    told = json.loads((tmp_path / "demo" / "data" / "metadata.json").read_text())
    assert json.loads(told["action_space"]) == {"type": "Discrete", "dtype": "int64", "start": 0, "n": 3}
    minari = pytest.importorskip("minari")
    pytest.importorskip("PIL")
    assert minari.MinariDataset(tmp_path / "demo" / "data").action_space.n == 3


def read_d4rl(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """As D4RL's ``get_dataset`` does: every data set of the file, all of it, and what it asserts of them."""
    found: dict[str, np.ndarray[Any, Any]] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = item[:]

    with h5py.File(path, "r") as file:
        file.visititems(visit)
    for key in ("observations", "actions", "rewards", "terminals"):
        assert key in found, f"Dataset is missing key {key}"
    count = found["observations"].shape[0]
    assert found["rewards"].shape == (count,) and found["terminals"].shape == (count,)
    assert found["actions"].shape[0] == count
    return found


def test_d4rl_reads_what_was_recorded(recording: Recording, tmp_path: Path) -> None:
    export(recording, tmp_path / "demo.hdf5", "d4rl", **TRANSITIONS)
    found = read_d4rl(tmp_path / "demo.hdf5")
    assert np.array_equal(found["observations"], np.concatenate(episodes(recording, OBSERVATIONS)))
    assert np.array_equal(found["infos/body.1.tanh"], np.concatenate(episodes(recording, "tanh_1")))
    ends = np.cumsum(LENGTHS) - 1
    assert np.flatnonzero(found["terminals"] | found["timeouts"]).tolist() == ends.tolist()
    assert np.flatnonzero(found["terminals"]).tolist() == [ends[0], ends[2]]


def test_robomimic_opens_what_was_recorded(recording: Recording, tmp_path: Path) -> None:
    dataset = pytest.importorskip("robomimic.utils.dataset")
    export(recording, tmp_path / "demo.hdf5", "robomimic", **TRANSITIONS)
    keys = ["observations", "act_body.1.tanh"]
    names = ("actions", "rewards", "dones")
    found = dataset.SequenceDataset(str(tmp_path / "demo.hdf5"), obs_keys=keys, dataset_keys=names, seq_length=2)
    assert len(found) == sum(LENGTHS)
    wanted = episodes(recording, "tanh_1")[0]
    assert np.array_equal(found[1]["obs"]["act_body.1.tanh"], wanted[1:3])
    assert np.array_equal(found[1]["next_obs"]["act_body.1.tanh"], wanted[2:4])
    found.close_and_delete_hdf5_handle()


def test_robomimic_files_follow_its_rules(recording: Recording, tmp_path: Path) -> None:
    export(recording, tmp_path / "demo.hdf5", "robomimic", keys="tanh_1", env_name="CartPole-v1",
           observations=OBSERVATIONS, actions="action")  # fmt: skip
    with h5py.File(tmp_path / "demo.hdf5", "r", swmr=True, libver="latest") as file:
        assert set(file) == {"data"} and file["data"].attrs["total"] == sum(LENGTHS)
        assert json.loads(file["data"].attrs["env_args"])["env_name"] == "CartPole-v1"
        assert sorted(int(name[5:]) for name in file["data"]) == list(range(5))
        for number, (wanted, length) in enumerate(zip(episodes(recording, "tanh_1"), LENGTHS, strict=True)):
            demo = file[f"data/demo_{number}"]
            assert demo.attrs["num_samples"] == length
            assert demo["actions"].shape == (length, 1) and demo["dones"][:].tolist() == [0] * (length - 1) + [1]
            assert set(demo["obs"]) == set(demo["next_obs"]) == {"observations", "act_tanh_1"}
            assert np.array_equal(demo["obs/act_tanh_1"], wanted)
            assert np.array_equal(demo["next_obs/act_tanh_1"][:-1], wanted[1:])


CONTEXT, WIDTH = 6, 4


def cached(tmp_path: Path, dtype: torch.dtype | None = None) -> Recording:
    """Activations of a model over batches of tokens, in a file."""
    model = nn.Sequential(nn.Embedding(50, WIDTH), nn.Linear(WIDTH, WIDTH))
    keep = {"keep_module": "0", "keep_op": fastrec.predicates.kind("input"), "include_source_events": True}
    with Recorder(model, sink=tmp_path / "run.h5", capture=CaptureSpec(dtype=dtype), **keep) as rec:
        for size in (8, 8, 3):
            model(torch.randint(50, (size, CONTEXT)))
    del rec
    return fastrec.load(tmp_path / "run.h5")


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
def test_huggingface_loads_what_saelens_needs(tmp_path: Path, dtype: torch.dtype | None) -> None:
    datasets = pytest.importorskip("datasets")
    recording = cached(tmp_path, dtype)
    keys = {"0": "blocks.0.hook_resid_post", ":in[0]": "token_ids"}
    export(recording, tmp_path / "cached", "huggingface", keys=keys)
    # What follows is what SAELens' activations store does with it.
    found = datasets.load_from_disk(str(tmp_path / "cached"))
    found.set_format(type="torch", columns=list(keys.values()), dtype=torch.float32)
    assert found.features["blocks.0.hook_resid_post"].shape == (CONTEXT, WIDTH)
    some = found[5:9]
    assert some["blocks.0.hook_resid_post"].shape == (4, CONTEXT, WIDTH)
    assert torch.equal(some["blocks.0.hook_resid_post"], recording.rows("0", by="sample")[5:9].float())
    assert torch.equal(some["token_ids"].long(), recording.rows(":in[0]", by="sample")[5:9])
    assert len(found) == 19


def test_huggingface_writes_large_recordings_in_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr("fastrec.exports._huggingface.SHARD_BYTES", 500)
    monkeypatch.setattr("fastrec.exports._huggingface.STRETCH_BYTES", 200)
    recording = cached(tmp_path)
    export(recording, tmp_path / "cached", "huggingface", keys="0")
    assert len(list((tmp_path / "cached").glob("*.arrow"))) > 2
    found = datasets.load_from_disk(str(tmp_path / "cached")).with_format("torch")
    assert torch.equal(found[:]["0"], recording.rows("0", by="sample")[:])


def test_what_is_missing_is_an_error(recording: Recording, tmp_path: Path) -> None:
    for format in ("minari", "d4rl", "robomimic"):
        with pytest.raises(OptionError, match=f"{format} needs actions: give actions= a key of the recording"):
            export(recording, tmp_path / "x.hdf5", format, observations=OBSERVATIONS)
        with pytest.raises(StepError, match="marked with a column 'score' for the rewards; there are 'rew"):
            export(recording, tmp_path / "x.hdf5", format, rewards="score", **TRANSITIONS)
    with pytest.raises(RecordKeyError, match="did you mean"):
        export(recording, tmp_path / "x.hdf5", "d4rl", keys="tan_1", **TRANSITIONS)
    model = nn.Linear(2, 2)
    with pytest.raises(StepError, match="none was marked"):
        export(fastrec.record(model, torch.ones(1, 2), keep_op=True), tmp_path / "x", "minari", **TRANSITIONS)
    assert [path.name for path in tmp_path.iterdir() if path.name != "run.h5"] == []


def test_nothing_is_written_over_and_nothing_half_written_stays(recording: Recording, tmp_path: Path) -> None:
    taken = tmp_path / "taken.npz"
    taken.write_text("mine")
    with pytest.raises(RecordingExistsError, match="exists; give another path"):
        export(recording, taken, "numpy")
    assert taken.read_text() == "mine"
    with pytest.raises(OptionError, match=r"has to end in .hdf5 or .h5"):
        export(recording, tmp_path / "x.npz", "d4rl", **TRANSITIONS)
    with pytest.raises(RecordingFileError, match="can't be written"):
        export(recording, tmp_path / "nowhere" / "x.npz", "numpy")
    assert {path.name for path in tmp_path.iterdir()} <= {"run.h5", "taken.npz"}


def test_formats_and_options_that_are_none_are_errors(recording: Recording, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="there is no format 'minary'; did you mean 'minari'"):
        export(recording, tmp_path / "x", "minary")
    for format in EXPORTERS:
        with pytest.raises(OptionError, match=f"the format '{format}' has no option 'nothing'"):
            export(recording, tmp_path / "x", format, nothing=1)
    with pytest.raises(OptionError, match="two keys have the same name"):
        export(recording, tmp_path / "x.npz", "numpy", keys={"head": "a", ":out": "a"})
    assert set(OPTIONS) == set(EXPORTERS)


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(FastrecError, match=r"huggingface needs datasets.*pip install '.*\[datasets\]'"):
        export(rollout(), tmp_path / "x", "huggingface")


def test_names_that_would_be_groups_of_each_other_are_told_apart(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Tanh())
    with Recorder(model, keep_op=True, keep_module=True, include_source_events=True) as rec:
        for i in range(3):
            model(torch.randn(1, 2))
            rec.step(reward=0.0, terminated=[i == 2], truncated=[False])
    keys = {"0/tanh": "a/b", "0": "a.b", ":out": "a"}
    export(rec.recording, tmp_path / "x.h5", "d4rl", keys=keys, observations="0", actions="0")
    with h5py.File(tmp_path / "x.h5") as file:
        assert set(file["infos"]) == {"a.b", "a.b#2", "a"}


def test_many_episodes_are_read_in_stretches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recording = rollout(steps=40)
    expected = recording.episodes()
    for steps in (1, 7, 1000):
        monkeypatch.setattr("fastrec.exports._episodes.STRETCH_STEPS", steps)
        export(recording, tmp_path / f"{steps}.h5", "d4rl", keys=["head"], observations=OBSERVATIONS, actions="action")
        with h5py.File(tmp_path / f"{steps}.h5") as file:
            for name, values in {
                "observations": [e[OBSERVATIONS].numpy() for e in expected],
                "infos/head": [e["head"].numpy() for e in expected],
                "rewards": [e.columns["reward"] for e in expected],
                "actions": [e.columns["action"] for e in expected],
                "terminals": [np.arange(len(e)) == (len(e) - 1 if e.terminated else -1) for e in expected],
                "timeouts": [np.arange(len(e)) == (-1 if e.terminated else len(e) - 1) for e in expected],
            }.items():
                np.testing.assert_array_equal(file[name][:], np.concatenate(values).astype(file[name].dtype))


@pytest.mark.parametrize("format", ["numpy", "safetensors"])
@pytest.mark.parametrize("by", [None, "sample"])
def test_rows_that_are_not_those_of_the_steps_are_refused(tmp_path: Path, format: str, by: Any) -> None:
    path = tmp_path / ("run." + {"numpy": "npz"}.get(format, format))
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh())
    with torch.no_grad(), Recorder(model, keep_op="tanh") as rec:
        for t in range(5):
            if t != 3:
                model(torch.ones(2, 4))
            rec.step(t=t)
        model(torch.ones(2, 4))
    recording = rec.recording
    with pytest.raises(StepError, match=r"has 5 records, and there are 5 steps.*1 of them are of no step"):
        export(recording, path, format, by=by)
    assert not path.exists()
    with pytest.raises(StepError, match=r"has 4 records, and there are 5 steps.*fired 0 times in step 3"):
        export(recording.select(steps=range(5)), path, format, by=by)
    export(recording.select(steps=range(3)), path, format, by=by)
    path.unlink()
    export(recording, path, format, by=by, steps=False)
