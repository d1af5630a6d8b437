"""Recordings that were hurt in thousands of ways, each read in a process of its own with limits on time and memory.

    python -m tests.sinks.hdf5.mutants 5000

says how many of them were read right, were refused with a typed error, or gave what is left with a warning. Everything
else is a fault: a crash, no end, an untyped error, or other values than were recorded without a word.
"""

import collections
import json
import os
import resource
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

import fastrec
from fastrec import FastrecError, Recorder
from fastrec.files import describe, merge, verify
from fastrec.sinks import HDF5Sink
from tests.sinks.hdf5 import recordings

MAX_SECONDS = 30

MAX_MEMORY = 3 << 30
"""Bytes of address space on top of what the process has when it begins."""

Truth = dict[str, Any]


def copied(source: Path, target: Path) -> None:
    shutil.copytree(source, target, dirs_exist_ok=True)


def growing(folder: Path) -> None:
    """One file in progress, with many flushes."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh())
    with tempfile.TemporaryDirectory() as place:
        sink = HDF5Sink(Path(place) / "run.h5", **recordings.SMALL)
        with torch.no_grad(), Recorder(model, keep_op=True, keep_module=True, sink=sink) as rec:
            for i in range(30):
                rec.log(torch.full((2, 3), float(i)), sample_id=f"s{i}")
                rec.step(reward=i, terminated=i % 10 == 9, truncated=False)
                if i % 7 == 6:
                    rec.flush()
            rec.flush()
            copied(Path(place), folder)


def nine(folder: Path) -> None:
    """Several finished segments."""
    model = torch.nn.Identity()
    sink = HDF5Sink(folder / "run.h5", segment_bytes=1 << 20, flush_seconds=1000)
    with Recorder(model, keep_module=True, sink=sink) as rec:
        for i in range(24):
            model(torch.full((60_000,), float(i)))
            rec.step(number=i)
            if i % 3 == 0:
                rec.flush()


def beside(folder: Path) -> None:
    """A file that shows two others."""
    for rank in range(2):
        model = torch.nn.Identity()
        with Recorder(model, keep_module=True, sink=folder / f"rank.{rank}.h5") as rec:
            for i in range(5):
                model(torch.full((3,), float(i + 10 * rank)))
                rec.step(number=i)
    merge([folder / "rank.0.h5", folder / "rank.1.h5"], folder / "run.h5", virtual=True)


MAKERS: dict[str, Callable[[Path], None]] = {
    "plain": recordings.plain,
    "compressed": recordings.compressed,
    "growing": growing,
    "killed": recordings.killed,
    "nine": nine,
    "beside": beside,
    "continued": recordings.continued,
}


def truth_of(recording: fastrec.Recording) -> Truth:
    """What a recording says, each value by the pass, site and occurrence that it is of."""
    records: dict[str, str] = {}
    counts: collections.Counter[str] = collections.Counter()
    for record in recording:
        key = f"{record.ctx.pass_index} {record.ctx.label} {record.ctx.site}"
        counts[key] += 1
        values = (record.activation, record.transformed_activation)
        records[f"{key} {counts[key]}"] = json.dumps([recordings.bits_of(value) for value in values])
    steps = recording.steps
    columns = {name: np.ma.filled(steps[name].astype(float), -1e9).tolist() for name in steps}
    return {"passes": recording.n_passes, "records": records, "steps": columns}


# --- what is done to files --------------------------------------------------------------------------------------------


def _position(data: bytearray, random: Random) -> int:
    """Somewhere in the file; most of one in progress is room that was never used."""
    at = random.randrange(len(data))
    while random.random() < 0.9 and not data[at]:
        at = random.randrange(len(data))
        if random.random() < 0.01:
            break
    return at


def flipped(data: bytearray, random: Random) -> None:
    for _ in range(random.choice([1, 1, 1, 5])):
        data[_position(data, random)] ^= 1 << random.randrange(8)


def overwritten(data: bytearray, random: Random) -> None:
    at, size = _position(data, random), random.choice([1, 2, 8, 512, 4096])
    data[at : at + size] = random.choice([bytes(size), b"\xff" * size, random.randbytes(size)])[: len(data) - at]


def truncated(data: bytearray, random: Random) -> None:
    del data[random.choice([0, 1, len(data) // 2, len(data) - 1, random.randrange(len(data))]) :]


def inserted(data: bytearray, random: Random) -> None:
    at = random.choice([0, 8, _position(data, random), len(data)])
    data[at:at] = random.choice([b"\0\0", random.randbytes(random.choice([1, 2, 8, 512]))])


def removed(data: bytearray, random: Random) -> None:
    at = _position(data, random)
    del data[at : at + random.choice([1, 2, 512])]


def swapped(data: bytearray, random: Random) -> None:
    size = random.choice([64, 512, 4096])
    first, second = sorted(_position(data, random) // size * size for _ in range(2))
    a, b = data[first : first + size], data[second : second + size]
    if first != second and len(a) == len(b):
        data[first : first + size], data[second : second + size] = b, a


BYTES = (flipped, flipped, flipped, overwritten, truncated, inserted, removed, swapped)


def odd_file(path: Path, random: Random) -> None:
    """Something else in place of a file, or another of its files."""
    others = sorted(other for other in path.parent.iterdir() if other.is_file() and other != path)
    content = path.read_bytes()
    path.unlink()
    kind = random.choice(["fifo", "folder", "loop", "zero", "socket", "gone", "empty", "other", "passwd", "link"])
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind in ("zero", "passwd"):
        path.symlink_to("/dev/zero" if kind == "zero" else "/etc/passwd")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(os.path.relpath(path))
    elif kind == "empty":
        path.touch()
    elif kind == "other" and others:
        shutil.copyfile(random.choice(others), path)
    elif kind == "link":
        (path.parent / "elsewhere").write_bytes(content)
        path.symlink_to("elsewhere")


def mutate(folder: Path, random: Random) -> str:
    """Hurt one file of a recording; what was done."""
    path = random.choice(sorted(folder.iterdir()))
    change = random.choice((*BYTES, odd_file))
    if change is odd_file:
        change(path, random)
    else:
        data = bytearray(path.read_bytes())
        change(data, random)
        path.write_bytes(data)
    return f"{change.__name__} {path.name}"


# --- what is read of them ---------------------------------------------------------------------------------------------


class FaultError(Exception):
    """Something that must not happen."""


def attempt(function: Callable[[], Any]) -> tuple[Any, bool, bool]:
    """The result of a call, whether it was refused with an error of fastrec, and whether it warned."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result, refused = function(), False
        except FastrecError as error:
            result, refused = error, True
    return result, refused, any(issubclass(each.category, fastrec.FastrecWarning) for each in caught)


def compare(truth: Truth, found: Truth, *, said: bool, what: str) -> bool:
    """Whether everything is as it was; a FaultError where it is not, and nothing was said."""
    if found == truth:
        return True
    if not said:
        different = {
            name: [str(truth[name])[:200], str(found[name])[:200]] for name in truth if truth[name] != found[name]
        }
        raise FaultError(f"{what} gives something else without a word: {different}")
    return False


def read(folder: Path, truth: Truth) -> str:
    """Read a hurt recording in every way: "right", "typed" or "salvaged"."""
    path = folder / "run.h5"
    plain, refused, warned = attempt(lambda: truth_of(fastrec.load(path)))
    checked, was_checked_refused, was_checked_warned = attempt(lambda: truth_of(fastrec.load(path, verify=True)))
    found, was_verify_refused, _ = attempt(lambda: verify(path))
    says_damage = was_verify_refused or bool(found.damage)
    results = []
    if not refused:
        compare(truth, plain, said=warned or says_damage, what="load")
    if not was_checked_refused:
        results.append(compare(truth, checked, said=was_checked_warned, what="load(verify=True)"))
    attempt(lambda: describe(path))
    rest, was_rest_refused, was_rest_warned = attempt(lambda: truth_of(fastrec.load(path, salvage=True)))
    if not was_rest_refused:
        compare(truth, rest, said=was_rest_warned, what="load(salvage=True)")
    recovered, was_recover_refused, _ = attempt(lambda: fastrec.recover(path, to=folder / "copy.h5"))
    if not was_recover_refused:
        again, _, was_again_warned = attempt(lambda: truth_of(fastrec.load(folder / "copy.h5")))
        said = "damaged" in recovered.lost or was_again_warned or isinstance(again, FastrecError)
        if not isinstance(again, FastrecError):
            compare(truth, again, said=said, what="recover")
        else:
            raise FaultError(f"what was recovered can't be read: {again}")
    recover_in_place(folder, {} if was_rest_refused else rest["records"])
    if results == [True]:
        return "right"
    return "typed" if was_rest_refused else "salvaged"


def recover_in_place(folder: Path, records: dict[str, str]) -> None:
    """Recover in place: all that could be read still can, and what is damaged is kept beside it."""
    path, before = folder / "run.h5", {each.name for each in folder.iterdir() if each.suffix == ".tmp"}
    recovered, refused, _ = attempt(lambda: fastrec.recover(path))
    kept = {each.name.removesuffix(".damaged") for each in folder.iterdir()}
    if (refused or "damaged" in recovered.lost) and not before <= kept:
        raise FaultError(f"recover removed {before - kept} and says {recovered}")
    if not refused:
        again, _, _ = attempt(lambda: truth_of(fastrec.load(path, salvage=True)))
        rest = {} if isinstance(again, FastrecError) else again["records"]
        if not records.items() <= rest.items():
            raise FaultError(f"after recover in place less can be read: {again}")


def run_limited(folder: Path, truth: Truth) -> str:
    """The same in a process of its own; also "crashed", "endless" or the text of a fault."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if not child:
        os.close(read_end)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MAX_MEMORY, size + MAX_MEMORY))
        try:
            result = read(folder, truth)
        except BaseException:  # whatever it is, it is a fault
            result = traceback.format_exc()
        os.write(write_end, result.encode()[-4000:])
        os._exit(0)
    os.close(write_end)
    until = time.monotonic() + MAX_SECONDS
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(read_end)
            return "endless"
        time.sleep(0.002)
    with open(read_end, "rb") as pipe:
        return pipe.read().decode() or "crashed"


def survey(seeds: range, names: list[str]) -> tuple[dict[str, int], list[str]]:
    """How many mutants ended how, and the faults."""
    counts: collections.Counter[str] = collections.Counter()
    faults = []
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.chdir(place)
        originals: dict[str, tuple[Path, Truth]] = {}
        for name in names:
            folder = Path(place) / name
            folder.mkdir()
            MAKERS[name](folder)
            copied(folder, Path(place) / f"{name}.original")
            originals[name] = folder, truth_of(fastrec.load(folder / "run.h5"))
            assert run_limited(folder, originals[name][1]) == "right"
            shutil.rmtree(folder)
            copied(Path(place) / f"{name}.original", folder)
        for seed in seeds:
            random, name = Random(seed), names[seed % len(names)]
            folder = Path(place) / "hurt"
            shutil.rmtree(folder, ignore_errors=True)
            copied(originals[name][0], folder)
            done = mutate(folder, random)
            result = run_limited(folder, originals[name][1])
            if result not in ("right", "typed", "salvaged"):
                faults.append(f"{seed} {name}, {done}: {result}")
                result = "fault"
            counts[result] += 1
    return dict(counts), faults


def main() -> None:
    torch.set_num_threads(1)
    first, _, count = sys.argv[1].rpartition("+")
    counts, faults = survey(range(int(first or 0), int(first or 0) + int(count)), list(MAKERS))
    print(*faults, sep="\n\n")
    print(counts)
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
