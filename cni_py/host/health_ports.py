"""Findings on published ports: where they lead, who else has them, and whether somebody listens. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from cni_py.host.findings import RECORDS, finding, some, unread
from cni_py.host.model import Finding, Host, Namespace, Port, Socket
from cni_py.host.nftables_ports import ANY

ALL = set(ANY.values())
# Programs that hold a port of the host on purpose: they keep it for a container, or serve it.
HOLDERS = ("docker-proxy", "portfwd", "conmon", "rootlessport", "rootlesskit", "pasta", "slirp4netns", "sleep")
LOOPBACKS = ("127.", "::1")


def named(port: Port) -> str:
    """8080/tcp, or 127.0.0.1:8080/tcp."""
    span = f"{port.first}-{port.last}" if port.last > port.first else str(port.first)
    at = f"[{port.host_address}]:" if ":" in port.host_address else f"{port.host_address}:"
    return f"{'' if port.host_address in ALL else at}{span}/{port.protocol}"


def of_host_addresses(host: Host) -> Iterator[Finding]:
    """Ports on addresses that the host does not have."""
    own = {each.address for link in host.root.links for each in link.addresses}
    for port in host.ports:
        if port.host_address not in own | ALL and not port.host_address.startswith("127."):
            yield finding(
                "host-address-missing",
                f"port {named(port)}",
                f"no interface of the host has {port.host_address}",
                why="no client reaches the port",
                do="publish the port on an address of the host, or on all of them",
            )


def of_targets(host: Host) -> Iterator[Finding]:
    """Ports that lead to nobody; ports of ours whose container has no record."""
    known = {one.container_id for one in host.attachments}
    alive = {one.container_id for one in host.attachments if one.live == "alive"}
    there = {each.address for namespace in host.namespaces for link in namespace.links for each in link.addresses}
    blind, unrecorded = unread(host, "namespace"), unread(host, RECORDS)
    for port in host.ports:
        if port.source == "cni-py" and port.container_id and port.container_id not in known and not unrecorded:
            yield finding(
                "orphan-port",
                f"port {named(port)}",
                f"it leads to container {port.container_id}, of which there is no record",
                do="cni-py gc",
            )
        elif port.target and port.target not in there and not blind and port.container_id and port.way != "relay":
            yield finding(
                "target-missing",
                f"port {named(port)}",
                f"it leads to {port.target}, an address that no container has",
                why="clients wait in vain",
                do="start the container anew" if port.container_id in alive else "cni-py gc, or publish the port anew",
            )


def of_claims(host: Host) -> Iterator[Finding]:
    """Ports that two rules lead to different containers."""
    by_place: dict[tuple[str, str, int], list[Port]] = defaultdict(list)
    for port in host.ports:
        if not port.shared and not port.allow and port.first == port.last:
            by_place[port.protocol, port.host_address, port.first].append(port)
    for ports in by_place.values():
        targets = {(one.target, one.target_port) for one in ports if one.target}
        if len(targets) > 1:
            yield finding(
                "port-claimed-twice",
                f"port {named(ports[0])}",
                f"it leads to {some(f'{one.target}:{one.target_port} by {one.place}' for one in ports)}",
                why="the rule that comes first decides",
            )


def of_listeners(host: Host) -> Iterator[Finding]:
    """Programs of the host whose port leads to a container."""
    sockets: dict[tuple[str, int], list[Socket]] = defaultdict(list)
    for socket in host.root.sockets:
        if socket.program and not socket.program.startswith(HOLDERS):
            sockets[socket.protocol, socket.port].append(socket)
    found: dict[tuple[int, str, int], Port] = {}
    for port in host.ports:
        for number in range(port.first, port.last + 1) if port.way == "nat" and not port.allow else ():
            for socket in sockets.get((port.protocol, number), ()):
                if _meet(socket, port):
                    found.setdefault((socket.pid, socket.program, number), port)
    for (pid, program, number), port in found.items():
        yield finding(
            "listener-shadowed",
            f"port {number}/{port.protocol}",
            f"{program} (pid {pid}) listens on it, and NAT leads its clients to container {port.container_id or port.target}",
            why="the program gets connections over the loopback interface at most",
            do="let one of the two have another port",
        )


def _meet(socket: Socket, port: Port) -> bool:
    """Whether clients of the socket are taken by the port's rule. NAT takes nothing that goes to ::1."""
    if socket.address in ALL:
        six = ":" in port.host_address
        return six == (":" in socket.address) or (not six and not socket.v6only)
    if port.host_address in ALL:
        return (":" in socket.address) == (":" in port.host_address) and not socket.address.startswith(LOOPBACKS)
    return socket.address == port.host_address


def of_services(host: Host) -> Iterator[Finding]:
    """Containers in which nothing listens where their ports lead."""
    homes = _homes(host)
    deaf: dict[str, list[str]] = defaultdict(list)
    inward: dict[str, list[str]] = defaultdict(list)
    for port in host.ports:
        namespace = homes.get(port.target)
        if namespace is None or not namespace.process_count or port.last - port.first > 0:
            continue
        state = heard(namespace.sockets, port)
        who = port.container_id or port.target
        if state == "loopback":
            inward[who].append(f"{port.target_port}/{port.protocol}")
        elif not state:
            deaf[who].append(f"{port.target_port}/{port.protocol}")
    for who, ports in inward.items():
        yield finding(
            "listens-on-loopback",
            f"container {who}",
            f"on {some(ports)} it listens on its own loopback interface alone",
            why="a published port leads to the container's address on the network",
            do="let the program listen on all addresses",
        )
    for who, ports in deaf.items():
        yield finding(
            "nothing-listens",
            f"container {who}",
            f"nothing listens on {some(ports)}",
            why="clients of the published port are refused",
        )


def _homes(host: Host) -> dict[str, Namespace]:
    """The namespaces of containers, by address."""
    return {
        each.address: namespace
        for namespace in host.namespaces[1:]
        for link in namespace.links
        if "loopback" not in link.flags
        for each in link.addresses
    }


def heard(sockets: Iterable[Socket], port: Port) -> str:
    """ "yes" when a socket takes what comes for the port's target, "loopback" when one does for the loopback alone, or ""."""
    six = ":" in port.target
    found = ""
    for one in sockets:
        if one.protocol != port.protocol or one.port != port.target_port:
            continue
        if (
            one.address == port.target
            or one.address == ANY[6 if six else 4]
            or (one.address == "::" and not one.v6only)
        ):
            return "yes"
        if one.address.startswith(LOOPBACKS):
            found = "loopback"
    return found


def of_mappings(host: Host) -> Iterator[Finding]:
    """What portfwd says of its mappings."""
    for one in {each.id: each for each in host.relays if each.problem}.values():
        yield finding("relay-problem", f"relay {one.id}", f"{one.listen} to {one.target}: {one.problem}")


CHECKS = (of_host_addresses, of_targets, of_claims, of_listeners, of_services, of_mappings)
