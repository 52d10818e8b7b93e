"""Which mapping has which host port, as bind(2) sees it: any address conflicts with every one of its family. Pure."""

from __future__ import annotations

from portfwd.mapping import ANY, RANGE_MIN, Mapping


class Claims:
    """The ports of all mappings of a process. Few ports are entries of a dict by port; a long range is one entry of a list."""

    __slots__ = ("_held", "_long")

    def __init__(self) -> None:
        self._held: dict[tuple[str, int], tuple[Mapping, ...]] = {}  # (protocol, port): those with few ports
        self._long: dict[str, Mapping] = {}  # by id

    def holder(self, mapping: Mapping) -> tuple[str, int] | None:
        """The id of another mapping that has one of the ports, and that port; None for none."""
        for other in self._long.values():
            first = max(mapping.first, other.first)
            if first <= min(mapping.last, other.last) and _conflict(other, mapping):
                return other.id, first
        for port in mapping.ports:
            for other in self._held.get((mapping.protocol, port), ()):
                if _conflict(other, mapping):
                    return other.id, port
        return None

    def having(self, protocol: str, ports: range) -> set[str]:
        """The ids of the mappings that have some of the ports."""
        found = {one.id for one in self._long.values() if one.protocol == protocol and meet(one.ports, ports)}
        if len(ports) > len(self._held):
            held = (each for (what, port), each in self._held.items() if what == protocol and port in ports)
        else:
            held = (self._held.get((protocol, port), ()) for port in ports)
        return found | {one.id for each in held for one in each}

    def put(self, mapping: Mapping) -> None:
        """Enter all its ports."""
        if len(mapping.ports) >= RANGE_MIN:
            self._long[mapping.id] = mapping
            return
        for port in mapping.ports:
            key = mapping.protocol, port
            self._held[key] = (*self._held.get(key, ()), mapping)

    def take(self, mapping: Mapping) -> None:
        """Remove all its ports."""
        self._long.pop(mapping.id, None)
        for port in mapping.ports if len(mapping.ports) < RANGE_MIN else ():
            key = mapping.protocol, port
            left = tuple(other for other in self._held.pop(key, ()) if other.id != mapping.id)
            if left:
                self._held[key] = left


def meet(one: range, other: range) -> bool:
    """Whether two ranges have a port in common."""
    return one.start < other.stop and other.start < one.stop


def _conflict(held: Mapping, wanted: Mapping) -> bool:
    if held.id == wanted.id or held.protocol != wanted.protocol:
        return False
    return any(conflict(one, other) for one in held.host_ips for other in wanted.host_ips)


def any_of(ip: str) -> str:
    """0.0.0.0 or ::, as the family of `ip` has it."""
    return ANY[":" in ip]


def conflict(one: str, other: str) -> bool:
    """Whether two host addresses cannot have the same port."""
    return any_of(one) == any_of(other) and (one == other or one in ANY or other in ANY)
