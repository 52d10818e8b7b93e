"""A tree as lines of a terminal: measured in cells (an East Asian character has two), wrapped between words, framed. Pure.

    Node     a head, rows below it, and nodes that hang on it
    Row      pieces of text, each with a style
    Look     width, and which characters the terminal has

Text of others comes in by piece(): what is not printable is escaped there, and nothing is read as markup.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from rich.cells import cell_len

from cni_py.host.printable import plain

NARROWEST, WIDEST = 40, 200
FRAMES = "├─└│→✗…"
PLAIN = str.maketrans(FRAMES, "|-`|>x~")

SPACES = re.compile("( +)")

Piece = tuple[str, str]  # text, style
Row = tuple[Piece, ...]
Line = list[Piece]


@dataclass(frozen=True, slots=True)
class Look:
    """What a terminal can show."""

    width: int = 80
    encoding: str = "utf-8"

    @property
    def is_plain(self) -> bool:
        """Whether frames have to be ASCII."""
        try:
            FRAMES.encode(self.encoding)
        except (UnicodeEncodeError, LookupError):
            return True
        return False

    @property
    def columns(self) -> int:
        return max(NARROWEST, min(self.width, WIDEST))


@dataclass(slots=True)
class Node:
    """A place in the tree."""

    head: Row
    rows: list[Row] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)


def row(*pieces: Piece | str) -> Row:
    """Pieces that are not empty. A text without a style has none."""
    found = [(one, "") if isinstance(one, str) else one for one in pieces]
    return tuple((plain(text), style) for text, style in found if text)


def spaced(*pieces: Piece | str, gap: str = "  ") -> Row:
    """Pieces with a gap between those that are not empty."""
    found: list[Piece] = []
    for one in row(*pieces):
        found += [(gap, ""), one] if found else [one]
    return tuple(found)


def draw(nodes: Sequence[Node], look: Look, before: str = "", *, airy: bool = False) -> Iterator[Line]:
    """The lines of nodes that stand below each other; `airy`: with a free line around those that others hang on."""
    for number, node in enumerate(nodes):
        is_last = number == len(nodes) - 1
        inner = before + ("   " if is_last else "│  ")
        below = inner + ("│  " if node.nodes else "   ")
        if airy and number and (node.nodes or nodes[number - 1].nodes):
            yield from wrapped((), look, before + "│")
        yield from wrapped(node.head, look, before + ("└─ " if is_last else "├─ "), below + "  ")
        for one in node.rows:
            yield from wrapped(one, look, below, below + "    ")
        yield from draw(node.nodes, look, inner)


def wrapped(one: Row, look: Look, first: str = "", rest: str = "") -> Iterator[Line]:
    """A row as lines that fit; `first` is written before the first of them, `rest` before the others."""
    lead, then = (shown(text, look) for text in (first, rest))
    line: Line = [(lead, "frame")] if lead else []
    used = cell_len(lead)
    empty = True
    for word in words(one):
        pieces = [(shown(text, look), style) for text, style in word]
        size = sum(cell_len(text) for text, _ in pieces)
        if not empty and used + size > look.columns:
            yield trimmed(line)
            line, used, empty = ([(then, "frame")] if then else []), cell_len(then), True
            pieces = pieces if pieces[0][0].strip(" ") else pieces[1:]
        for text, style in pieces:
            left = text
            while used + cell_len(left) > look.columns and left.strip(" "):  # a word that is longer than a line
                fits, left = split(left, look.columns - used)
                yield [*line, (fits, style)]
                line, used = ([(then, "frame")] if then else []), cell_len(then)
            line.append((left, style))
            used += cell_len(left)
            empty = False
    yield trimmed(line)


def words(one: Row) -> Iterator[Row]:
    """Spaces, and what stands between them, which may have several styles."""
    word: list[Piece] = []
    for text, style in one:
        for part in filter(None, SPACES.split(text)):
            if part.startswith(" ") and word:
                yield tuple(word)
                word = []
            if part.startswith(" "):
                yield ((part, style),)
            else:
                word.append((part, style))
    if word:
        yield tuple(word)


def split(text: str, cells: int) -> tuple[str, str]:
    """As many characters as fit in cells, at least one, and the rest."""
    used = 0
    for number, one in enumerate(text):
        used += cell_len(one)
        if used > cells:
            return text[: max(number, 1)], text[max(number, 1) :]
    return text, ""


def trimmed(line: Line) -> Line:
    """Without spaces at its end; a piece for each style, not for each word."""
    found: Line = []
    for text, style in line:
        if found and found[-1][1] == style:
            found[-1] = (found[-1][0] + text, style)
        else:
            found.append((text, style))
    while found and not found[-1][0].rstrip(" "):
        found.pop()
    return [*found[:-1], (found[-1][0].rstrip(" "), found[-1][1])] if found else []


def shown(text: str, look: Look) -> str:
    """What the encoding has not: our own signs in ASCII, characters of others as escapes."""
    if text.isascii():
        return text
    if look.is_plain:
        text = text.translate(PLAIN)
    return text.encode(look.encoding, "backslashreplace").decode(look.encoding)


def plain_text(lines: Iterable[Line]) -> str:
    """Without styles, each line ended."""
    return "".join("".join(text for text, _ in line) + "\n" for line in lines)
