"""For the site: code that is marked for the tests is code all the same."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from markdown.extensions import Extension
from markdown.preprocessors import Preprocessor

if TYPE_CHECKING:
    from markdown import Markdown
    from mkdocs.config.defaults import MkDocsConfig

_BEFORE_FENCES = 28  # between Markdown's own normalizing of white space and the finding of fences


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Take for code, in pages and docstrings, what is marked for the tests."""
    config.markdown_extensions.append(_ForTests())
    return config


class _ForTests(Extension):
    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802 - Markdown's name
        md.preprocessors.register(_Fences(md), "for-tests", _BEFORE_FENCES)


class _Fences(Preprocessor):
    """Fences examples that begin with a prompt, which Markdown would take for quotations, and drops `no-run`."""

    def run(self, lines: list[str]) -> list[str]:
        told: list[str] = []
        fenced, indent = False, None
        for line in [*lines, ""]:
            if indent is not None and not line.strip():
                told.append(f"{indent}```")
                indent = None
            elif indent is None and not fenced and (prompt := re.match(r"( *)>>> ", line)):
                indent = prompt[1]
                told.append(f"{indent}```pycon")
            fenced ^= indent is None and line.lstrip().startswith("```")
            told.append(line.replace("```python no-run", "```python"))
        return told[:-1]
