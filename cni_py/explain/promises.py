"""Ports that attachment records say are published, and that the kernel or portfwd may have lost. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace

from cni_py.addr import ip_text, parse_address
from cni_py.attachment.engine import Op, op_from_json
from cni_py.explain.routing import ANY
from cni_py.host.model import Attachment, Operation, Port
from cni_py.ports.by_iptables import PublishByIptables
from cni_py.ports.iptables_rules import parse_ports
from cni_py.ports.mapping import Mapping, parse_mappings
from cni_py.ports.publish import PublishPorts
from cni_py.ports.relay import RelayPorts

RECORDED = "the attachment's record"  # Port.place of what the kernel or portfwd does not have
OPTIONAL = "the attachment's record: portfwd, if it runs"


def recorded(attachments: Iterable[Attachment], there: Iterable[Port]) -> Iterator[Port]:
    """What records publish and the model's ports lack. Of attachments that are provably dead: nothing."""
    known = {_key(port) for port in there}
    for attachment in attachments:
        for operation in attachment.operations if attachment.live != "dead" else ():
            for port in _of(attachment, operation):
                if _key(port) not in known:
                    yield port


def _key(port: Port) -> tuple[object, ...]:
    return port.protocol, port.host_address, port.first, port.last, port.way == "relay"


def _of(attachment: Attachment, operation: Operation) -> Iterator[Port]:
    """The ports of an operation, none of one that is damaged or of another kind."""
    try:
        op: Op = op_from_json(json.loads(operation.entry))
        if isinstance(op, PublishPorts):
            yield from (_nat(attachment, one, "nftables") for one in parse_mappings(op.ports))
        elif isinstance(op, PublishByIptables):
            yield from (_nat(attachment, one, "iptables") for one in _of_iptables(op))
        elif isinstance(op, RelayPorts):
            yield from _relays(attachment, op)
    except (
        ValueError,
        LookupError,
        RecursionError,
    ):  # op_from_json() says so; a model of a later version may hold other entries
        return


def _of_iptables(op: PublishByIptables) -> Iterator[Mapping]:
    """One for each of the container's addresses that a port is published for."""
    for port in parse_ports(op.ports):
        for address in op.addresses:
            mapping = port.mapping(parse_address(address))
            if mapping is not None:
                yield mapping


def _nat(attachment: Attachment, one: Mapping, backend: str) -> Port:
    host = ip_text(one.host_ip) if one.host_ip else ANY[one.family]
    span = one.first, one.last
    made = _port(attachment, one.protocol, host, span, (ip_text(one.container_ip), one.container_port))
    return replace(made, backend=backend, allow=tuple(one.allow), shared=one.share)


def _relays(attachment: Attachment, op: RelayPorts) -> Iterator[Port]:
    place = RECORDED if op.required else OPTIONAL
    for one in op.mappings:
        for host in one.host_ips:
            target = one.targets[0].address, one.targets[0].port
            made = _port(attachment, one.protocol, host, (one.first, one.last), target)
            yield replace(made, way="relay", backend="portfwd", allow=tuple(one.allow), place=place)


def _port(attachment: Attachment, protocol: str, host: str, span: tuple[int, int], target: tuple[str, int]) -> Port:
    key = attachment.network, attachment.container_id, attachment.ifname
    return Port(protocol, host, *span, *target, "nat", "cni-py", "nftables", *key, place=RECORDED)
