"""The drawing as SVG: a file of its own, or a part of the page. Pure; each text is escaped here and nowhere else.

Colours are classes, so that they follow the reader's choice of dark and light (drawing.css): the page forbids styles in elements.
"""

from __future__ import annotations

from importlib import resources
from xml.sax.saxutils import escape, quoteattr

from cni_py.host.model import Host
from cni_py.show.layout import Drawing, Shape, Text, Wire, drawing
from cni_py.show.scene import scene

HEAD = 7  # length of an arrow's head


def svg(host: Host) -> str:
    """The drawing of a host as a file: `cni-py show --svg`."""
    style = resources.files("cni_py.show").joinpath("drawing.css").read_text("utf-8")
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n{element(drawing(scene(host)), f"<style>{escape(style)}</style>")}\n'
    )


def element(made: Drawing, before: str = "") -> str:
    """The element <svg>; `before`: elements that come first in it."""
    size = f'width="{made.width}" height="{made.height}" viewBox="0 0 {made.width} {made.height}"'
    parts = [_part(part) for part in made.parts]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" class="drawing" {size} role="group" aria-label={quoteattr(made.title)}>',
            before or "<desc></desc>",
            f'<rect class="paper" width="{made.width}" height="{made.height}"/>',
            *parts,
            "</svg>",
        ]
    )


def _part(part: Shape | Wire) -> str:
    kind = part.kind if isinstance(part, Shape) else f"wire {part.kind}"
    name = f" data-id={quoteattr(part.id)}" if part.id else ""
    title = f"<title>{escape(part.full)}</title>" if part.full else ""
    body = _rectangle(part) if isinstance(part, Shape) else _line(part)
    texts = "".join(map(_text, part.texts))
    return f"<g class={quoteattr(f'{kind} {part.tone}'.strip())}{name}>{title}{body}{texts}</g>"


def _rectangle(shape: Shape) -> str:
    round_ = {"lan": 14, "host": 12, "chip": 9}.get(shape.kind, 5)
    return f'<rect x="{shape.x}" y="{shape.y}" width="{shape.width}" height="{shape.height}" rx="{round_}"/>'


def _line(wire: Wire) -> str:
    path = "M" + " L".join(f"{x} {y}" for x, y in wire.points)
    return f'<path d="{path}"/>' + (_head(*wire.points[-2:]) if wire.arrow else "")


def _head(before: tuple[int, int], tip: tuple[int, int]) -> str:
    """The head of an arrow along an axis."""
    x, y = tip
    along = ((tip[0] > before[0]) - (tip[0] < before[0]), (tip[1] > before[1]) - (tip[1] < before[1]))
    back = (x - HEAD * along[0], y - HEAD * along[1])
    side = (along[1] * HEAD * 2 // 3, along[0] * HEAD * 2 // 3)
    corners = [tip, (back[0] + side[0], back[1] + side[1]), (back[0] - side[0], back[1] - side[1])]
    return f'<polygon points="{" ".join(f"{one},{other}" for one, other in corners)}"/>'


def _text(text: Text) -> str:
    anchor = "" if text.anchor == "start" else f' text-anchor="{text.anchor}"'
    return f'<text class="{text.style}" x="{text.x}" y="{text.y}"{anchor}>{escape(text.text)}</text>'
