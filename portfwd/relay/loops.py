"""Targets that lead back to the mapping, found when it is published. Loops that only show with a client: netns/legs.py."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from portfwd.netns.legs import LOOPBACK, plain_ip

if TYPE_CHECKING:
    from portfwd.mapping import Mapping, Target


def way_back(
    start: Mapping, at: Callable[[str, range], Iterable[Mapping]], is_here: Callable[[Target], bool]
) -> list[Mapping]:
    """The mappings through which a client of `start` would come back to it, `start` first; none when it would not.

    `at` gives the mappings that have some of the ports, `is_here` tells whether a target's address is this host's.
    """
    todo = [(start, start.ports, [start])]
    seen = {start.id}
    while todo:
        mapping, ports, way = todo.pop()
        for target in mapping.targets:
            asked = range(mapping.target_port(target, ports[0]), mapping.target_port(target, ports[-1]) + 1)
            found = [one for one in at(mapping.protocol, asked) if one.id != start.id]
            found += [start] if _common(start.ports, asked) else []
            found = [one for one in found if meets(one, target.address)]
            if not found or not is_here(target):
                continue
            for one in found:
                if one is start:
                    return way
                if one.id not in seen:
                    seen.add(one.id)
                    todo.append((one, _common(one.ports, asked), [*way, one]))
    return []


def _common(one: range, other: range) -> range:
    return range(max(one.start, other.start), min(one.stop, other.stop))


def meets(mapping: Mapping, address: str) -> bool:
    """Whether a connection to an address of this host arrives at an address of the mapping."""
    wanted = LOOPBACK.get(plain_ip(address), plain_ip(address))
    wildcard = "::" if ":" in wanted else "0.0.0.0"  # noqa: S104
    return wanted in mapping.host_ips or wildcard in mapping.host_ips
