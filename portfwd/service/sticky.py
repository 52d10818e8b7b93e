"""Random ports that stay: the last number of a name is tried first, and the one it gets is remembered.

    /var/lib/cni-py/portfwd/sticky/NAME.json        see cni_py/ports/sticky_ports.py

A mapping has the name (`sticky`), so that the service can give it another number when its own is taken at a restart.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from cni_py.ports import local_ports, sticky_ports
from portfwd import spec
from portfwd.mapping import ANY, Mapping
from portfwd.relay import holders

log = logging.getLogger("portfwd")


def memory(state: str) -> sticky_ports.Memory:
    """The memory of sticky ports in the service's folder."""
    return sticky_ports.Memory(f"{state}/sticky", lambda text: log.warning("%s", text))


def key_of(mapping: Mapping) -> str:
    """The key of a mapping among the ports of its name, 80/tcp: several SPECs may have one name."""
    return f"{mapping.targets[0].port}/{mapping.protocol}"


def remember(known: sticky_ports.Memory, mappings: Iterable[Mapping], live: Iterable[Mapping] = ()) -> list[str]:
    """Remember the ports of mappings with a sticky name; returns notes on failures.

    The number of a live mapping stays remembered when a second mapping of the same name is published.
    """
    names: dict[str, dict[str, int]] = {}
    held = {(one.sticky, key_of(one), one.first): one.id for one in live if one.sticky}
    for mapping in mappings:
        if mapping.sticky:
            key = key_of(mapping)
            number = known.recall(mapping.sticky).get(key, 0)
            if held.get((mapping.sticky, key, number), mapping.id) != mapping.id:
                continue
            names.setdefault(mapping.sticky, {})[key] = mapping.first
    notes = []
    for name, ports in names.items():
        try:
            known.remember(name, ports)
        except OSError as error:
            notes.append(f"cannot remember the port of {name} in {known.folder}: {error.strerror}")
    return notes


def elsewhere(mapping: Mapping) -> Iterator[Mapping]:
    """The mapping on other ports, to try in turn when its own is taken."""
    ephemeral = local_ports.choosable(local_ports.content)
    host_ips = ANY if mapping.follow else mapping.host_ips
    wanted = spec.Publish(host_ips, None, range(mapping.first, mapping.first + 1), mapping.protocol)
    taken = holders.taken(mapping.protocol, host_ips) | {mapping.first}
    for first in spec.candidates(wanted, ephemeral, random_start(ephemeral), taken):
        yield replace(mapping, first=first, last=first)


def random_start(ephemeral: Sequence[int]) -> int:
    """An index into `ephemeral` at which to begin looking."""
    return int.from_bytes(os.urandom(4), "big") % len(ephemeral)
