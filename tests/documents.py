"""The code that stands in the documents: fenced blocks by language, and the commands of the shell ones."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]
USAGE = re.compile(r" \[(?:--\w+ [A-Z]+|key=value \.\.\.)\]")  # optional parts of a usage line
ASIDE = re.compile(r"`((?:rayvideo|make|ray|python|\.venv/bin/\S+) [^`]*)`")


class Block(NamedTuple):
    """A fenced block."""

    page: str
    """Relative to the repository."""
    kind: str
    """Its language; "" for figures and what programs print."""
    text: str


class Command(NamedTuple):
    """A command of the shell."""

    page: str
    line: str
    words: list[str]
    """The line's, without `.venv/bin/`, variables before it and what it is redirected to."""
    named: bool = False
    """Whether a sentence only names it."""


def blocks() -> list[Block]:
    """Every fenced block of every page."""
    fence = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    return [
        Block(str(page.relative_to(ROOT)), *found)
        for page in PAGES
        for found in fence.findall(page.read_text(encoding="utf-8"))
    ]


def block_of(page: str, kind: str, word: str = "") -> str:
    """The only block of its kind in a page that has this word."""
    (text,) = (block.text for block in blocks() if (block.page, block.kind) == (page, kind) and word in block.text)
    return text


def commands() -> list[Command]:
    """Every command: of bash blocks, behind a `$ ` in what programs print, and in running text."""
    found = [(block.page, line, False) for block in blocks() if block.kind == "bash" for line in _lines(block.text)]
    for block in blocks():
        if not block.kind:
            typed = re.findall(r"^\$ (.*)$", block.text.replace("\\\n", " "), re.MULTILINE)
            found += [(block.page, line, False) for line in typed]
    for page in PAGES:
        prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        found += [(str(page.relative_to(ROOT)), line, " -" not in line) for line in ASIDE.findall(prose)]
    return [Command(page, line, words, named) for page, line, named in found for words in _words(line)]


def _lines(text: str) -> list[str]:
    """Whole commands: over several lines where one ends in a backslash or within quotes."""
    lines, rest = [], ""
    for line in text.replace("\\\n", " ").splitlines():
        rest += line
        try:
            words = shlex.split(rest, comments=True)
        except ValueError:  # a quote is open
            rest += "\n"
            continue
        lines += [rest] if words else []
        rest = ""
    assert not rest, f"a quote stays open: {rest}"
    return lines


def _words(line: str) -> list[list[str]]:
    """The words of a line's commands, which `&&` joins."""
    words = shlex.split(USAGE.sub("", line), comments=True)
    parts: list[list[str]] = [[]]
    for word in words:
        if word == "&&":
            parts.append([])
        elif word not in ("&", "…", "...", ">", "/dev/null"):
            parts[-1].append(word)
    return [_bare(part) for part in parts]


def _bare(words: list[str]) -> list[str]:
    while re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    if words[:2] == ["taskset", "-c"]:
        words = words[3:]
    return [words[0].removeprefix(".venv/bin/"), *words[1:]]
