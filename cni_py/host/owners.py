"""Whose address is it? For published ports and masquerading, which lead to addresses. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cni_py.host.model import Attachment, Namespace, Source


@dataclass(frozen=True, slots=True)
class Owner:
    """The interface of a container; `source` is whose plugins connected it, "" when no plugin is known to have."""

    network: str = ""
    container_id: str = ""
    ifname: str = ""
    source: Source = ""


NOBODY = Owner()


@dataclass(frozen=True, slots=True)
class Owners:
    """The owners by address, by the attachment's hex, and by network and container; containers by the key of their namespace."""

    by_address: dict[str, Owner]
    by_hex: dict[str, Owner]
    by_names: dict[tuple[str, str], Owner]
    containers: dict[str, str]


def of(attachments: Iterable[Attachment], namespaces: Iterable[Namespace]) -> Owners:
    """Attachments first; then the containers that no attachment speaks of. The host's own namespace is not among `namespaces`."""
    by_address: dict[str, Owner] = {}
    by_hex: dict[str, Owner] = {}
    by_names: dict[tuple[str, str], Owner] = {}
    containers: dict[str, str] = {}
    # What is certainly dead comes last: its address may be another's by now.
    for one in sorted(attachments, key=lambda one: one.live == "dead"):
        owner = Owner(one.network, one.container_id, one.ifname, one.source)
        by_hex[one.hex] = owner
        by_names.setdefault((one.network, one.container_id), owner)
        for address in one.addresses:
            by_address.setdefault(address.partition("/")[0], owner)
        containers.setdefault(one.namespace, one.container_id)
    for namespace in namespaces:
        container = next((process.container_id for process in namespace.processes if process.container_id), "")
        containers.setdefault(namespace.key, container)
        for link in namespace.links:
            for each in link.addresses if "loopback" not in link.flags else ():
                if each.scope == "global":
                    by_address.setdefault(each.address, Owner("", container, link.name))
    containers.pop("", None)  # of those whose namespace is gone
    return Owners(by_address, by_hex, by_names, containers)
