"""Builds `dist/` and checks it as its users get it: `make release REPOSITORY=https://...`.

It uploads nothing. Without the address of the repository the README's links could not work on a package index, so there
is no release without it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from email.parser import Parser
from pathlib import Path

from fastrec import __version__
from fastrec._optional import DISTRIBUTION

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"

LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCED = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
NEEDED_URLS = {"Repository", "Documentation", "Changelog", "Issues"}
NEEDED_CLASSIFIERS = {
    "Operating System :: POSIX :: Linux",
    "Operating System :: MacOS",
    "Operating System :: Microsoft :: Windows",
}


def main(repository: str) -> None:
    if not re.fullmatch(r"https://\S+", repository):
        sys.exit("say where the repository is: make release REPOSITORY=https://...")
    shutil.rmtree(DIST, ignore_errors=True)
    run(sys.executable, "-m", "build", "--outdir", DIST, ROOT, REPOSITORY=repository)
    wheel, sdist = next(DIST.glob("*.whl")), next(DIST.glob("*.tar.gz"))
    run(sys.executable, "-m", "twine", "check", "--strict", wheel, sdist)
    problems = problems_of(metadata_of(wheel))
    if problems:
        sys.exit("\n".join(problems))
    try_out(wheel)
    print(f"{wheel.name} and {sdist.name} are in {DIST.name}/")


def run(*command: str | Path, cwd: Path | None = None, **variables: str) -> None:
    subprocess.run(command, check=True, cwd=cwd, env={**os.environ, **variables})


def metadata_of(wheel: Path) -> str:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return archive.read(name).decode()


def problems_of(metadata: str) -> list[str]:
    """What is wrong with what a package index would show."""
    message = Parser().parsestr(metadata)
    problems = []
    if (message["Name"], message["Version"]) != (DISTRIBUTION, __version__):
        problems.append(f"it is called {message['Name']} {message['Version']}, not {DISTRIBUTION} {__version__}")
    links = LINK.findall(FENCED.sub("", message.get_payload()))
    problems += [
        f"the link to {link} leads nowhere on a package index" for link in links if not re.match("https:", link)
    ]
    urls = {entry.partition(",")[0] for entry in message.get_all("Project-URL", [])}
    problems += [f"there is no project URL {name!r}" for name in sorted(NEEDED_URLS - urls)]
    classifiers = set(message.get_all("Classifier", []))
    problems += [f"there is no classifier {name!r}" for name in sorted(NEEDED_CLASSIFIERS - classifiers)]
    oldest = message["Requires-Python"].removeprefix(">=")
    if f"Programming Language :: Python :: {oldest}" not in classifiers:
        problems.append(f"Python {oldest} is required, and no classifier names it")
    return problems


def try_out(wheel: Path) -> None:
    """Record something with the wheel in an environment that has nothing else."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(sys.executable, "-m", "venv", folder / "venv")
        python = folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
        run(python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", wheel)
        shutil.copy(ROOT / "tools" / "smoke.py", folder)
        run(python, "-I", "-W", "error", folder / "smoke.py", cwd=folder)


if __name__ == "__main__":
    main(sys.argv[1])
