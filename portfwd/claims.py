"""Which mapping has which host port, as bind(2) sees it: any address conflicts with every one of its family. Pure."""

from __future__ import annotations

from portfwd.mapping import ANY, Mapping


class Claims:
    """The ports of all mappings of a process."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held: dict[tuple[str, int], list[tuple[str, str]]] = {}  # (protocol, port): (host address, id) ...

    def holder(self, mapping: Mapping) -> tuple[str, int] | None:
        """The id of another mapping that holds one of the ports, and that port."""
        for port in mapping.ports:
            for ip, name in self._held.get((mapping.protocol, port), ()):
                if name != mapping.id and any(conflict(ip, wanted) for wanted in mapping.host_ips):
                    return name, port
        return None

    def put(self, mapping: Mapping) -> None:
        """Enter all its ports."""
        for port in mapping.ports:
            held = self._held.setdefault((mapping.protocol, port), [])
            held.extend((ip, mapping.id) for ip in mapping.host_ips)

    def take(self, mapping: Mapping) -> None:
        """Take them out."""
        for port in mapping.ports:
            held = self._held.get((mapping.protocol, port), [])
            held[:] = [entry for entry in held if entry[1] != mapping.id]
            if not held:
                self._held.pop((mapping.protocol, port), None)


def any_of(ip: str) -> str:
    """0.0.0.0 or ::, as the family of `ip` has it."""
    return ANY[":" in ip]


def conflict(one: str, other: str) -> bool:
    """Whether two host addresses cannot have the same port."""
    return any_of(one) == any_of(other) and (one == other or one in ANY or other in ANY)
