"""Who made an interface, as far as its mark, its attachment, its bridge or its name tell. Pure.

Names are those that the programs give by default: docker0 and br-<12 digits> are Docker's, podman0 and cni-podman0 podman's,
cali..., flannel.1, cilium_host, kube-ipvs0 and nodelocaldns those of Kubernetes' networks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from cni_py.attachment.records import attachment_in
from cni_py.host.model import Host, Link, Source

NAMES: tuple[tuple[re.Pattern[str], Source], ...] = (
    (re.compile(r"docker0|docker_gwbridge|br-[0-9a-f]{12}"), "docker"),
    (re.compile(r"podman\d+|cni-podman\d+"), "podman"),
    (re.compile(r"cali[0-9a-f]{11}|vxlan\.calico|flannel\.\d+|cilium_\w+|kube-ipvs0|nodelocaldns"), "kubernetes"),
)


def with_makers(host: Host) -> Host:
    """The host, whose links say who made them."""
    of_attachments = {name: one.source for one in host.attachments for name in one.host_links}
    bridges = _bridges(host)
    known: dict[tuple[str, str], Source] = {(host.root.key, name): source for name, source in of_attachments.items()}
    known |= {(one.namespace, one.ifname): one.source for one in host.attachments if one.namespace}
    spaces = []
    for space in host.namespaces:
        root = space is host.root
        links = tuple(
            replace(link, source=_source(link, space.key, known, bridges if root else {})) for link in space.links
        )
        spaces.append(replace(space, links=links))
    return replace(host, namespaces=tuple(spaces))


def _bridges(host: Host) -> dict[str, Source]:
    """The bridges of the host that plugins made, by the containers in them; without any, by the plugins of the network."""
    found: dict[str, Source] = {}
    for one in host.attachments:
        if one.bridge and (one.bridge not in found or one.source == "cni-py"):
            found[one.bridge] = one.source
    return found


def _source(link: Link, key: str, known: Mapping[tuple[str, str], Source], bridges: Mapping[str, Source]) -> Source:
    if attachment_in(link.alias)[1] is not None:
        return "cni-py"
    if (key, link.name) in known:
        return known[key, link.name]
    if link.name in bridges:
        return bridges[link.name]
    by_name = _by_name(link.name)
    # A veth in Docker's or podman's bridge is theirs; one in a bridge of a CNI network may be anybody's.
    return by_name or (_by_name(link.master) if link.kind == "veth" else "")


def _by_name(name: str) -> Source:
    return next((source for pattern, source in NAMES if pattern.fullmatch(name)), "")
