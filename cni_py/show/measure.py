"""How wide a text is drawn, from above; texts cut and wrapped to a width. Pure.

The readers' fonts are not known here. DejaVu Sans is wider than the other usual ones: what fits in it fits in them.
"""

from __future__ import annotations

from rich.cells import cell_len

from cni_py.host.printable import plain

MONO = {"code": 7.3, "chip": 6.7}  # pixels per column; the others, of their height:
HEIGHT = {"title": 14 * 1.12, "big": 17 * 1.12}  # bold letters are wider
HEIGHT_OTHER = 12
NARROW, SLIM, BROAD = frozenset("iljI|.,:;'!`"), frozenset('frt()[]{}/\\" -*·'), frozenset("mMwW@%…✗⚠→")


def px(text: str, style: str) -> float:
    """The width of a text, from above."""
    if style in MONO:
        return cell_len(text) * MONO[style]
    return HEIGHT.get(style, HEIGHT_OTHER) * sum(map(_em, text))


def _em(one: str) -> float:
    """The width of a character, in parts of its height."""
    if one in NARROW:
        return 0.35
    if one in SLIM:
        return 0.42
    if one in BROAD or cell_len(one) == 2:
        return 1.0
    return 0.79 if one.isupper() or ord(one) > 127 else 0.64


def fitting(text: str, style: str, width: float) -> str:
    """The text, cut to a width; what was left out is an ellipsis."""
    text = plain(text)
    if px(text, style) <= width:
        return text
    kept, room = "", width - px("…", style)
    for one in text:
        room -= px(one, style)
        if room < 0:
            break
        kept += one
    return kept + "…"


def wrapped(text: str, style: str, width: float, lines: int) -> list[str]:
    """The text in at most so many lines, broken at spaces; a longer word, or the last line, is cut."""
    found: list[str] = []
    for word in plain(text).split():
        if found and px(f"{found[-1]} {word}", style) <= width:
            found[-1] += f" {word}"
        elif len(found) < lines:
            found.append(fitting(word, style, width))
        else:
            found[-1] = fitting(f"{found[-1]} {word}", style, width)
            break
    return found
