"""Every example in the README, in docs/ and in docstrings runs as it is printed."""

from __future__ import annotations

import ast
import doctest
import inspect
import re
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[1]
PAGES = [page for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))) if page.is_file()]
MODULES = [
    ".".join(path.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")
    for path in sorted((ROOT / "src").rglob("*.py"))
    if path.name != "__main__.py"  # importing it runs the command
]

FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^`\n]*)\n(?P<body>.*?)^(?P=indent)``` *$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block of Python, with the line that its first line has on the page."""

    source: str
    line: int


def python_blocks(text: str) -> Iterator[Block]:
    """Give the page's blocks marked ```python, but for those marked ```python no-run."""
    for fence in FENCE.finditer(text):
        words = fence["info"].split()
        if words[:1] == ["python"] and "no-run" not in words:
            indent = len(fence["indent"])
            source = "\n".join(line[indent:] for line in fence["body"].splitlines())
            yield Block(source, text.count("\n", 0, fence.start("body")) + 1)


def compiled(block: Block, filename: str) -> CodeType:
    """Compile a block under the page's name and lines, so that a traceback points at the page."""
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT  # as notebooks and `python -m asyncio` do
    tree = ast.increment_lineno(ast.parse(block.source, filename), block.line - 1)
    return compile(tree, filename, "exec", flags=flags, dont_inherit=True)


async def run_page(text: str, filename: str) -> dict[str, object]:
    """Run all blocks of one page in order, in one namespace, and give the namespace."""
    names: dict[str, object] = {"__name__": "__main__"}
    for block in python_blocks(text):
        code = compiled(block, filename)
        if code.co_flags & inspect.CO_COROUTINE:
            await eval(code, names)  # noqa: S307 - the project's own pages
        else:
            exec(code, names)  # noqa: S102 - the project's own pages
    return names


def page_id(page: Path) -> str:
    """Name a page as a reader would."""
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=page_id)
async def test_pages_run(page, tmp_path, monkeypatch):
    """The Python blocks of a page run in order, one after the other, in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    await run_page(page.read_text("utf-8"), str(page))


@pytest.mark.parametrize("module", MODULES)
def test_docstring_examples_run(module, tmp_path, monkeypatch):
    """What the examples in a module's docstrings print is what stands below them."""
    monkeypatch.chdir(tmp_path)
    examples = doctest.DocTestFinder().find(pytest.importorskip(module))  # skipped where its extra is not installed
    report: list[str] = []
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)
    for example in examples:
        runner.run(example, out=report.append)
    assert not report, "".join(report)


async def test_blocks_of_a_page_share_their_names():
    """A later block uses what an earlier one made; blocks in lists and other languages are told apart."""
    page = "# T\n```python\na = 1\n```\n- item\n  ```python\n  b = a + 1\n  ```\n```bash\nfalse\n```\n"
    assert (await run_page(page, "page.md"))["b"] == 2


async def test_a_block_may_await():
    """A block awaits at its top level, as in a notebook."""
    page = "```python\nimport asyncio\nawait asyncio.sleep(0)\ndone = True\n```\n"
    assert (await run_page(page, "page.md"))["done"] is True


async def test_no_run_is_not_run():
    """A block marked no-run is only shown."""
    assert "a" not in await run_page("```python no-run\na = 1\n```\n", "page.md")


async def test_a_failing_block_names_its_line():
    """The traceback of a failing block names the page and the line on it."""
    with pytest.raises(ZeroDivisionError) as failed:
        await run_page("text\n\n```python\na = 0\n1 / a\n```\n", "page.md")
    frame = traceback.extract_tb(failed.tb)[-1]
    assert (frame.filename, frame.lineno) == ("page.md", 5)
