"""Where the parts of the drawing are: boxes and wires with coordinates in pixels. Pure: a scene in, a drawing out.

From left to right: the LAN, the published ports on the host's edge, what is said about each bar, and the members below it. A bar
with many members goes on in further rows. In each row the wires of ports run above the bar, that of the leftmost member lowest,
so that they do not cross each other before they turn down to their members.

The width of texts is an estimate from above (DejaVu Sans, the widest of the usual fonts): what is longer than its place is cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from cni_py.host.printable import plain
from cni_py.show.measure import fitting, px, wrapped
from cni_py.show.parts import Bar, Member, Nic, Row, Scene, Way

WIDTH = 1280
MARGIN = 16
LAN = 84  # width
EDGE = 260  # the host's left side
INSIDE = EDGE + 14
GRID = 486  # where members begin
RIGHT = WIDTH - 36  # where bars end
SPINE = 10  # width of what joins the rows of a bar
GAP = 16  # between members
LINE = 16  # height of a line of text
PITCH = 26  # between the wires of ports
CHIP = 18  # height
BAR = 26  # height
WIRE = 46  # length of a veth
CHIP_MOST = 122  # width of its text
MANY = 24  # members of a bar from which on their boxes are small
LINES = {"error": 3, "warning": 3}  # of a row; of others 2


@dataclass(frozen=True, slots=True)
class Text:
    """A line of text; (x, y) is its start or end on the baseline."""

    x: int
    y: int
    text: str
    style: str
    anchor: str = "start"  # or "end", "middle"


@dataclass(frozen=True, slots=True)
class Shape:
    """A rectangle with texts."""

    id: str
    kind: str  # "lan", "host", "bar", "member", "chip", "nic", "publisher", "spine", "words"
    x: int
    y: int
    width: int
    height: int
    texts: tuple[Text, ...] = ()
    tone: str = ""  # further classes: "error", "strange", "gone", "way-nat"
    full: str = ""  # all that is known, as a tooltip

    @property
    def bottom(self) -> int:
        """Its lower edge."""
        return self.y + self.height


@dataclass(frozen=True, slots=True)
class Wire:
    """A line through points; with an arrow at its last one."""

    id: str
    kind: str  # "veth", "port", "uplink", "masquerade", "legend"
    points: tuple[tuple[int, int], ...]
    texts: tuple[Text, ...] = ()
    tone: str = ""
    arrow: bool = False
    full: str = ""


@dataclass(frozen=True, slots=True)
class Drawing:
    """Parts in the order in which they are drawn."""

    title: str
    width: int
    height: int
    parts: tuple[Shape | Wire, ...]


def drawing(scene: Scene) -> Drawing:
    """The drawing of a scene."""
    parts: list[Shape | Wire] = []
    y, right = _header(scene, MARGIN, parts)
    for nic in scene.nics:
        y = _nic(nic, y, right, parts)
    y = max([y, *(part.bottom + 6 for part in parts if isinstance(part, Shape))])
    for bar in scene.bars:
        y = _bar(bar, y + 24, parts)
    height = y + MARGIN
    lan = Shape(
        "lan", "lan", MARGIN, MARGIN, LAN, height - MARGIN,
        (Text(MARGIN + LAN // 2, MARGIN + 28, "LAN", "big", "middle"),
         Text(MARGIN + LAN // 2, MARGIN + 46, "and beyond", "dim", "middle")),
    )  # fmt: skip
    host = Shape("host", "host", EDGE, MARGIN, WIDTH - MARGIN - EDGE, height - MARGIN, tone=scene.level)
    parts += _legend(height + 28)
    return Drawing(plain(scene.title), WIDTH, height + 48, (lan, host, *parts))


def stacked(rows: Sequence[Row], x: int, y: int, width: int) -> list[Text]:
    """Rows below each other, the first baseline at y. Words are wrapped, addresses cut."""
    found: list[Text] = []
    for row in rows:
        if row.style == "code":
            lines = [fitting(row.text, row.style, width)]
        else:
            lines = wrapped(row.text, row.style, width, LINES.get(row.style, 2))
        found += [Text(x, y + LINE * (len(found) + number), line, row.style) for number, line in enumerate(lines)]
    return found


def tones(*words: str) -> str:
    """Classes, without the empty ones."""
    return " ".join(word for word in words if word)


# The host


def _header(scene: Scene, y: int, parts: list[Shape | Wire]) -> tuple[int, int]:
    """Where it goes on, and how far to the right."""
    right = RIGHT
    if scene.publisher:
        width = 300
        box = _box(scene.publisher, "publisher", RIGHT - width, y + 14, width)
        parts.append(box)
        right = box.x - GAP
    title = Text(INSIDE, y + 30, fitting(scene.title, "big", right - INSIDE), "big")
    texts = [title, *stacked(scene.rows, INSIDE, y + 52, right - INSIDE)]
    parts.insert(0, Shape("host", "words", INSIDE, y + 10, right - INSIDE, texts[-1].y - y - 4, tuple(texts)))
    return texts[-1].y + 16, right


def _nic(nic: Nic, y: int, right: int, parts: list[Shape | Wire]) -> int:
    lines = []
    for styles in (("code",), ("plain", "dim")):
        joined = "   ".join(row.text for row in nic.rows if row.style in styles)
        lines += [Row(joined, styles[-1])] if joined else []
    lines += [row for row in nic.rows if row.style in ("error", "warning", "note")]
    middle = y + CHIP // 2
    texts = stacked(lines, INSIDE, middle + 4, right - INSIDE)
    chip = _chip(nic.id, "nic", nic.name, middle, nic.level)
    parts.append(Wire(nic.id, "uplink", ((MARGIN + LAN, middle), (chip.x, middle)), tone=nic.level))
    parts.append(replace(chip, texts=(*chip.texts, *texts)))
    return max([middle + 14, *(one.y + 10 for one in texts)])


def _chip(name: str, kind: str, text: str, middle: int, tone: str, full: str = "") -> Shape:
    """A label on the host's edge."""
    shown = fitting(text, "chip", CHIP_MOST)
    width = int(px(shown, "chip")) + 16
    words = Text(EDGE - width // 2, middle + 4, shown, "chip", "middle")
    return Shape(name, kind, EDGE - width, middle - CHIP // 2, width, CHIP, (words,), tone, full or plain(text))


# Bars


def _bar(bar: Bar, y: int, parts: list[Shape | Wire]) -> int:
    if not bar.members:
        return _bare_bar(bar, y, parts)
    many = len(bar.members) > MANY
    columns = 4 if many else 3
    width = (RIGHT - SPINE - GAP - GRID - GAP * (columns - 1)) // columns
    tops: list[int] = []
    for start in range(0, len(bar.members), columns):
        row = [_shortened(one, many) for one in bar.members[start : start + columns]]
        top = y + PITCH * sum(len(one.ways) for one in row)
        tops.append(top)
        below = [] if start else [_about(bar, top + BAR + 10)]
        boxes = [
            _box(one, "member", GRID + number * (width + GAP), top + BAR + (WIRE if _wired(bar) else 14), width)
            for number, one in enumerate(row)
        ]
        parts += _ways(row, boxes, top, many)
        parts.append(_rail(bar, top, first=not start))
        parts += [*_wires(bar, row, boxes, top + BAR), *boxes, *below]
        y = max(one.bottom for one in (*boxes, *below)) + 18
    if len(tops) > 1:
        spine = Shape(bar.id, "spine", RIGHT - SPINE, tops[0] + 2, SPINE, tops[-1] + BAR - tops[0] - 4, (), _tone(bar))
        parts.append(spine)
    parts += _masquerade(bar, tops[0])
    return y - 18


def _bare_bar(bar: Bar, y: int, parts: list[Shape | Wire]) -> int:
    """A bar without members says what there is to say in itself."""
    shape = _rail(bar, y, first=True)
    x = shape.x + 22 + int(px(shape.texts[0].text, "title"))
    text = fitting("   ".join(row.text for row in bar.about), "dim", RIGHT - x - 10)
    parts.append(replace(shape, texts=(*shape.texts, Text(x, y + 17, text, "dim"))))
    parts += _masquerade(bar, y)
    return y + BAR


def _rail(bar: Bar, y: int, *, first: bool) -> Shape:
    title = bar.title if first else f"{bar.title} (continued)"
    texts = (Text(INSIDE + 10, y + 18, fitting(title, "title", RIGHT - INSIDE - 20), "title"),)
    full = "; ".join([plain(bar.title), *(plain(row.text) for row in bar.about)])
    return Shape(bar.id, "bar", INSIDE, y, RIGHT - INSIDE, BAR, texts, _tone(bar), full)


def _tone(bar: Bar) -> str:
    return tones(f"bar-{bar.kind}", bar.level, "strange" if bar.strange else "")


def _about(bar: Bar, y: int) -> Shape:
    texts = stacked(bar.about, INSIDE + 10, y + 12, GRID - GAP - INSIDE - 10)
    return Shape(bar.id, "words", INSIDE, y, GRID - GAP - INSIDE, LINE * len(texts) + 4, tuple(texts))


def _masquerade(bar: Bar, y: int) -> list[Shape | Wire]:
    if not bar.masquerade:
        return []
    middle = y + BAR // 2
    name = bar.masquerade_id
    chip = _chip(name, "chip", "masquerade", middle, "way-masquerade", f"{plain(bar.title)}: {bar.masquerade}")
    return [
        Wire(name, "masquerade", ((INSIDE, middle), (EDGE, middle)), full=chip.full),
        Wire(name, "masquerade", ((chip.x, middle), (MARGIN + LAN + 2, middle)), arrow=True, full=chip.full),
        chip,
    ]


def _wired(bar: Bar) -> bool:
    return bar.kind in ("bridge", "routed", "parent")


def _wires(bar: Bar, row: Sequence[Member], boxes: Sequence[Shape], y: int) -> Iterator[Wire]:
    """From the bar's lower edge, at y, to each box, with the names of both ends."""
    if not _wired(bar):
        return
    for member, box in zip(row, boxes, strict=True):
        x, room = box.x + box.width // 2, box.width // 2 + GAP - 8
        texts = [Text(x + 6, y + 15, fitting(member.outer, "chip", room), "chip")] if member.outer else []
        texts += [Text(x + 6, box.y - 6, fitting(member.inner, "chip", room), "chip")] if member.inner else []
        tone = tones(member.wire_level or (member.level if member.gone else ""), "gone" if member.gone else "",
                     "strange" if member.strange else "")  # fmt: skip
        full = f"{plain(member.outer)} to {plain(member.inner)} of {plain(member.title)}"
        yield Wire(member.wire_id or member.id, "veth", ((x, y), (x, box.y)), tuple(texts), tone, full=full)


def _shortened(member: Member, many: bool) -> Member:
    """With many members a box says less; and there is room for so many ports."""
    most = 4 if many else 6
    rows = tuple(row for row in member.rows if row.style not in ("dim", "plain")) if many else member.rows
    ways = member.ways
    if len(ways) > most:
        left = len(ways) - most + 1
        rest = "; ".join(way.full for way in ways[most - 1 :])
        ways = (*ways[: most - 1], Way(member.id, f"{left} more", "ports of the same", "more", full=rest))
    return replace(member, rows=rows, ways=ways)


def _box(member: Member, kind: str, x: int, y: int, width: int) -> Shape:
    inner = width - 20
    tag = fitting(member.tag, "dim", inner // 2)
    room = inner - (px(tag, "dim") + 8 if tag else 0)
    texts = [Text(x + 10, y + 19, fitting(member.title, "title", room), "title")]
    texts += [Text(x + width - 10, y + 19, tag, "dim", "end")] if tag else []
    texts += stacked(member.rows, x + 10, y + 37, inner)
    height = texts[-1].y - y + 10
    full = "\n".join([plain(member.title), *(plain(row.text) for row in member.rows)])
    tone = tones(member.level, "strange" if member.strange else "", "gone" if member.gone else "")
    return Shape(member.id, kind, x, y, width, height, tuple(texts), tone, full)


def _ways(row: Sequence[Member], boxes: Sequence[Shape], bottom: int, many: bool) -> Iterator[Shape | Wire]:
    """The wires of the published ports of a row of members, above the bar whose upper edge is at `bottom`."""
    step = 14 if many else 17
    ends = [
        (way, box.x + 14 + step * number, box)
        for member, box in zip(row, boxes, strict=True)
        for number, way in enumerate(member.ways)
    ]
    for track, (way, x, box) in enumerate(ends):
        y = bottom - PITCH // 2 - PITCH * track
        tone = tones(f"way-{way.way}", way.level, "local" if way.local else "")
        full = plain(way.full or way.label)
        label = Text(INSIDE, y - 4, fitting(way.label, "chip", GRID - INSIDE), "chip")
        yield Wire(way.id, "port", ((EDGE, y), (x, y), (x, box.y - 1)), (label,), tone, True, full)
        chip = _chip(way.id, "chip", way.chip, y, tone, full)
        if not way.local:
            yield Wire(way.id, "port", ((MARGIN + LAN, y), (chip.x - 1, y)), (), tone, True, full)
        yield chip


# Legend


def _legend(y: int) -> Iterator[Wire]:
    x = MARGIN
    for kind, tone, words, arrow in (
        ("port", "way-nat", "published by NAT", True),
        ("port", "way-relay", "by a relay (a process)", True),
        ("port", "way-both", "by both", True),
        ("port", "way-nat local", "for this host alone", True),
        ("masquerade", "", "masquerade", True),
        ("veth", "", "veth", False),
        ("veth", "error", "broken", False),
        ("veth", "strange", "not ours", False),
    ):
        text = Text(x + 40, y + 4, words, "dim")
        yield Wire("", "legend " + kind, ((x, y), (x + 32, y)), (text,), tone, arrow)
        x += 56 + int(px(words, "dim"))
