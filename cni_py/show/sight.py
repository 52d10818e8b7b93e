"""What the scene is made from: the sorted model (view.py), findings by object, published ports by container. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import groupby

from cni_py.host.model import Finding, Host, Port
from cni_py.show import ids, words
from cni_py.show.parts import Row, Way
from cni_py.show.view import Plug, View, view

ANY = ("0.0.0.0", "::", "")  # noqa: S104  nothing is bound here
LOOPBACK = ("127.", "::1")
LEVELS = ("error", "warning", "note")
SIGNS = {"error": "✗", "warning": "⚠", "note": "·"}


@dataclass
class Sight:
    """The model and its maps; what was drawn is noted in it."""

    host: Host
    view: View
    findings: dict[str, list[Finding]]  # by id of the object
    numbers: dict[int, int]  # id() of a port or masquerade: its place in the model
    by_address: dict[str, list[Port]]  # ports that name no container of the view
    shown: set[Finding] = field(default_factory=set)  # those that stand in a box
    drawn: set[str] = field(default_factory=set)  # keys of namespaces

    def level(self, *objects: str) -> str:
        """The worst level of findings about any of the objects."""
        found = {one.level for name in objects for one in self.findings.get(name, ())}
        return next((level for level in LEVELS if level in found), "")

    def marks(self, *objects: str) -> tuple[Row, ...]:
        """The findings about the objects, as rows."""
        found = [one for name in objects for one in self.findings.get(name, ())]
        self.shown.update(found)
        return tuple(Row(f"{SIGNS[one.level]} {one.what}", one.level) for one in dict.fromkeys(found))

    def port(self, one: Port) -> str:
        """The id of a port."""
        return ids.port(self.numbers[id(one)])

    def ports(self, plug: Plug) -> list[Port]:
        """The ports that lead to an interface: by its container's id, or by its addresses."""
        mine = [one.partition("/")[0] for one in plug.addresses]
        return [*plug.ports, *(port for address in mine for port in self.by_address.pop(address, ()))]

    def ways(self, ports: list[Port]) -> tuple[Way, ...]:
        """One for each published port, those from outside first; the same port of both families is one."""
        ordered = sorted(ports, key=_sameness)
        found = [self._way(list(group)) for _, group in groupby(ordered, key=_sameness)]
        return tuple(sorted(found, key=lambda one: one.local))

    def _way(self, group: list[Port]) -> Way:
        one = group[0]
        full = "; ".join(f"{words.listens(port)} leads to {words.leads(port)} by {words.way(port)}" for port in group)
        inside = (
            f"{one.target_port}"
            if one.last == one.first
            else f"{one.target_port}-{one.target_port + one.last - one.first}"
        )
        return Way(
            self.port(one),
            _chip(group),
            f"{words.WAYS[one.way]} → :{inside}{', allow list' if one.allow else ''}",
            one.way,
            one.host_address.startswith(LOOPBACK),
            self.level(*map(self.port, group)),
            full,
        )


def _sameness(port: Port) -> tuple[object, ...]:
    """The same for ports that are drawn as one."""
    address = (
        "" if port.host_address in ANY else "loopback" if port.host_address.startswith(LOOPBACK) else port.host_address
    )
    return address, port.first, port.last, port.protocol, port.way, port.target_port, port.source, port.allow


def _chip(group: list[Port]) -> str:
    """ "8080/tcp" at any address of both families, or of IPv4; "[::]:8080/tcp", "192.0.2.1:8080/tcp"."""
    numbers = words.at("", group[0].first, group[0].last) + f"/{group[0].protocol}"
    addresses = {one.host_address for one in group}
    if addresses == {"::"} or not addresses & set(ANY):
        return words.listens(group[0]) if len(addresses) == 1 else f"localhost{numbers}"
    return numbers.removeprefix(":")


def look(host: Host) -> Sight:
    """The sight of a host."""
    known, sorted_model = ids.subjects(host), view(host)
    findings: dict[str, list[Finding]] = {}
    for finding in host.findings:
        for name in ids.about(finding, known):
            findings.setdefault(name, []).append(finding)
    numbers = {id(one): number for number, one in enumerate(host.ports)}
    numbers |= {id(one): number for number, one in enumerate(host.masquerades)}
    by_address: dict[str, list[Port]] = {}
    for port in sorted_model.ports:
        by_address.setdefault(port.target, []).append(port)
    return Sight(host, sorted_model, findings, numbers, by_address)
