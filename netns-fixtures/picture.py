"""Draw a lab as the kernel reports it: namespaces as boxes, with links, addresses and published ports."""

from __future__ import annotations

from dataclasses import dataclass

from pyroute2 import IPRoute


@dataclass(frozen=True, slots=True)
class Link:
    """An interface of a node."""

    name: str
    kind: str  # "veth", "bridge"; empty for loopback
    master: str
    addresses: tuple[str, ...]  # with prefix length; link-local ones left out
    gateways: tuple[str, ...]  # of default routes through it


def observe() -> list[Link]:
    """Every interface except lo. Call it inside the node."""
    with IPRoute() as ipr:
        links = list(ipr.get_links())
        names = {link["index"]: link.get("ifname") for link in links}
        addresses = list(ipr.get_addr())
        defaults = [route for route in ipr.get_routes() if route["dst_len"] == 0 and route.get("gateway")]
    found = []
    for link in links:
        if names[link["index"]] == "lo":
            continue
        found.append(
            Link(
                names[link["index"]],
                link.get(("linkinfo", "kind")) or "",
                names.get(link.get("master"), "") or "",
                tuple(
                    f"{entry.get('address')}/{entry['prefixlen']}"
                    for entry in addresses
                    if entry["index"] == link["index"] and not entry.get("address").startswith("fe80:")
                ),
                tuple(route.get("gateway") for route in defaults if route.get("oif") == link["index"]),
            )
        )
    return found


def box(title: str, lines: list[str], width: int = 0) -> list[str]:
    """A box around lines; its outer width is at least `width`."""
    inner = max([len(line) for line in lines] + [len(title) + 2, width - 4])
    top = f"┌─ {title} " + "─" * (inner - len(title) - 1) + "┐"
    return [top, *(f"│ {line.ljust(inner)} │" for line in lines), "└" + "─" * (inner + 2) + "┘"]


def beside(left: list[str], right: list[str], gap: int = 2) -> list[str]:
    """Two boxes next to each other, tops aligned."""
    height = max(len(left), len(right))
    widths = len(left[0]), len(right[0])
    rows = zip(left + [" " * widths[0]] * (height - len(left)), right + [""] * (height - len(right)), strict=True)
    return [f"{one}{' ' * gap}{other}" for one, other in rows]


def put(line: str, column: int, mark: str) -> str:
    """The line with `mark` written over it at a column."""
    return line[:column] + mark + line[column + len(mark) :]


def described(link: Link) -> list[str]:
    """An interface: a line for each address, and one for each default route."""
    words = list(link.addresses) or ["(no address)"]
    lines = [f"{link.name:<7} {words[0]}", *(f"{'':<7} {word}" for word in words[1:])]
    return lines + [f"{'':<7} default via {gateway}" for gateway in link.gateways]


def draw(
    client: list[Link], host: list[Link], containers: dict[str, list[str]], published: list[str], columns: int = 1000
) -> list[str]:
    """The client on top, the host below it, the containers at the bottom: side by side if `columns` has room for them.

    `containers`: name -> lines of its box. Their veths are the ports of the host's bridge, in the same order.
    """
    row: list[str] = []
    stems: list[int] = []  # the columns where the veths run
    for name, lines in containers.items():
        title = f"{name} (container)"
        left = len(row[0]) + 2 if row else 0
        stems.append(left + len(title) + 5)
        row = beside(row, box(title, lines)) if row else box(title, lines)
    narrow = len(row[0]) > columns
    bridge = next(link for link in host if link.kind == "bridge")
    ports = [link for link in host if link.master == bridge.name]
    uplinks = [link for link in host if not link.master and link is not bridge]
    lines = [line for link in uplinks for line in described(link)]
    lines += [f"{'':<7} {line}" for line in published]
    lines += ["", f"{bridge.name:<7} bridge, the containers' gateway: {', '.join(bridge.addresses)}"]
    names = [link.name for link in ports]
    top = box("client (a machine on the LAN)", [line for link in client for line in described(link)])
    title = "host (network namespace)"
    middle = box(title, lines) if narrow else box(title, [*lines, *wires(stems, names)], len(row[0]))
    stem = 31  # right of both titles
    top[-1] = put(top[-1], stem, "┬")
    middle[0] = put(middle[0], stem, "┴")
    upper = [*top, " " * stem + "│ LAN (veth pair)", *middle]
    if narrow:
        return upper[:-1] + below(upper[-1], containers, names)
    for column in stems:
        middle[-1] = put(middle[-1], column, "┼")
        row[0] = put(row[0], column, "┴")
    return [*upper[:-1], middle[-1], *(line.rstrip() for line in row)]


def below(bottom: str, containers: dict[str, list[str]], names: list[str]) -> list[str]:
    """The containers below each other, each further left than the one before, with the veths of the later ones beside it."""
    lefts = [4 * n for n in range(len(containers))][::-1]
    for left in lefts:
        bottom = put(bottom, left + 1, "┬")
    lines = [bottom]
    for (name, inside), left, port in zip(containers.items(), lefts, names, strict=False):
        frame = box(f"{name} (container)", inside)
        frame[0] = put(frame[0], 1, "┴")
        beside_it = "".join(" │  " for _ in range(left // 4))
        lines += [f"{beside_it} │ {port}", *(f"{beside_it}{line}" for line in frame)]
    return lines


def wires(stems: list[int], names: list[str]) -> list[str]:
    """The lines from the bridge down to its ports. `stems` are columns of the picture: two more than inside the box."""
    length = stems[-1] - 2 + 1
    rail, drop, label = " " * length, " " * length, " " * (length + 16)
    rail = rail[: stems[0] - 2] + "├" + "─" * (stems[-1] - stems[0] - 1) + "┐"
    for column in stems[1:-1]:
        rail = put(rail, column - 2, "┬")
    for column, name in zip(stems, names, strict=False):
        drop = put(drop, column - 2, "│")
        label = put(label, column - 2, f"│ {name}")
    return [rail, label.rstrip(), drop]
