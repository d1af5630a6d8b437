"""Every Python block of the documents runs, and prints what the document shows below it.

The blocks of one document share a namespace and run in order, in an empty folder. A fenced block marked
`text` that comes next after a Python block is its output; `...` in it stands for anything. A block marked
`console` shows commands behind `$ ` and what each prints, the exit code where it is not 0.
"""

import contextlib
import doctest
import io
import re
import shlex
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent, indent

import pytest

from fastrec._cli import main

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

FENCE = re.compile(r"^(?P<indent> *)```(?P<mark>.*)\n(?P<body>(?:.*\n)*?)(?P=indent)``` *$", re.MULTILINE)
PYTHON_FENCE = re.compile(r"^ *``` *(py|Py)", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    mark: str
    text: str
    line: int


def blocks(document: str) -> list[Block]:
    found = [
        Block(match["mark"].strip(), dedent(match["body"]), document.count("\n", 0, match.start("body")) + 1)
        for match in FENCE.finditer(document)
    ]
    if sum(block.mark == "python" for block in found) != len(PYTHON_FENCE.findall(document)):
        raise AssertionError("a Python block that is not closed or not marked ```python would not run")
    return found


def run_document(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Dataclasses and pickle look their module up by name.
    module = types.ModuleType(f"document_{path.stem.replace('-', '_')}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    found = blocks(path.read_text())
    for block, following in zip(found, [*found[1:], Block("", "", 0)], strict=False):
        if block.mark == "console":
            run_console(block, path)
        if block.mark != "python":
            continue
        printed = run_block(block, path, module)
        if following.mark == "text":
            assert_printed(following.text, printed, f"{path.name}:{following.line}")


def run_block(block: Block, path: Path, module: types.ModuleType) -> str:
    """Run a block so that tracebacks point into the document; return what it printed."""
    code = compile("\n" * (block.line - 1) + block.text, str(path), "exec")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code, module.__dict__)
    return printed.getvalue()


def run_console(block: Block, path: Path) -> None:
    """Run the commands of a block; each has to print what stands below it."""
    commands = re.split(r"^\$ ", block.text, flags=re.MULTILINE)
    line = block.line + commands[0].count("\n")
    for command in commands[1:]:
        typed, _, shown = command.partition("\n")
        program, *argv = shlex.split(typed)
        if program != "fastrec":
            raise AssertionError(f"{path.name}:{line} runs {program!r}; a console block runs fastrec alone")
        with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.redirect_stderr(printed):
            code = main(argv)
        text = printed.getvalue() + (f"(exit code {code})\n" if code else "")
        assert_printed(shown, text, f"{path.name}:{line + 1}")
        line += command.count("\n")


def assert_printed(shown: str, printed: str, where: str) -> None:
    shown, printed = (re.sub(r" +$", "", text, flags=re.MULTILINE).rstrip() + "\n" for text in (shown, printed))
    if not doctest.OutputChecker().check_output(shown, printed, doctest.ELLIPSIS):
        raise AssertionError(f"{where} shows\n{indent(shown, '    ')}but the block above printed\n{printed}")


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(document: str) -> Path:
    path = Path("page.md")
    path.write_text(document)
    return path


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_documents_run_and_print_what_they_show(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_document(path, monkeypatch)


def test_blocks_share_a_namespace_and_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    page = write("```python\nx = 2\n```\n\n```python\nprint(x, 'of', 3)\n```\n```text\n2 ... 3\n```\n")
    run_document(page, monkeypatch)


def test_console_blocks_run_and_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    page = "$ fastrec --version\nfastrec ...\n$ fastrec info x.h5\nfastrec: error: there is no ...\n(exit code 3)\n"
    run_document(write(f"```console\n{page}```\n"), monkeypatch)
    with pytest.raises(AssertionError, match=r"page.md:3 shows\n    torch"):
        run_document(write("```console\n$ fastrec --version\ntorch\n```\n"), monkeypatch)
    with pytest.raises(AssertionError, match=r"page.md:2 runs 'rm'"):
        run_document(write("```console\n$ rm x\n```\n"), monkeypatch)


def test_a_block_that_raises_fails_at_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        run_document(write("A title\n\n```python\nx = 1\n1 / 0\n```\n"), monkeypatch)
    assert caught.traceback[-1].lineno == 4  # counted from 0


def test_output_that_differs_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    page = write("```python\nprint(2)\n```\nIt prints\n```text\n3\n```\n")
    with pytest.raises(AssertionError, match=r"page.md:6 shows\n    3\nbut the block above printed\n2"):
        run_document(page, monkeypatch)


def test_blocks_in_lists_and_in_other_languages() -> None:
    found = blocks("- first\n\n  ```python\n  if True:\n      print(1)\n  ```\n\n```bash\nexit 1\n```\n")
    assert found == [Block("python", "if True:\n    print(1)\n", 4), Block("bash", "exit 1\n", 9)]


@pytest.mark.parametrize("document", ["```python\n1 / 0\n", "```py\n1 / 0\n```\n", "```python no-run\n1 / 0\n```\n"])
def test_python_blocks_that_would_not_run_are_refused(document: str) -> None:
    with pytest.raises(AssertionError, match="would not run"):
        blocks(document)
