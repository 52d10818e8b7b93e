"""UDP flows that the relay took while nftables was emptied, given back to NAT once the rules are there again.

NAT is decided with the first packet that connection tracking knows of. The process that puts the rules back has it forget the
flows of their ports, but a target that goes on talking makes one at once, by the relay's next answer to its client, and in that
one the client's datagrams are answers: its flow would stay with the relay as long as it lasts. So here, in this order: the
relay's flows end, tracking forgets them, and what these clients sent until then is dropped.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

from cni_py.kernel.conntrack import forget_udp_of
from portfwd.relay import holders

if TYPE_CHECKING:
    from portfwd.relay.udp import UdpPort
    from portfwd.relay.udp_sockets import Listener, UdpFlow

log = logging.getLogger("portfwd")


def give_back(servers: Iterable[UdpPort]) -> None:
    """The flows of ports that portmap publishes by rules, but for clients that no rule serves."""
    for server in servers:
        found: dict[tuple[Listener, int], list[UdpFlow]] = {}
        for flow in server.all_flows():
            if by_rules(flow.client[0]):
                found.setdefault((flow.listener, flow.port), []).append(flow)
        for (listener, port), flows in found.items():
            if holders.by_portmap("udp", listener.ip, port):
                log.info("%s: %d flows go back to NAT", server.mapping.id, len(flows))
                clients = {(packed(flow.client[0]), flow.client[1]) for flow in flows}
                server.end_all(flows)
                try:
                    forget_udp_of(clients, port)
                except OSError as error:
                    log.warning("cannot look through the tracked UDP flows: %s", error.strerror)
                server.drop_queued(listener, {flow.client for flow in flows})


def by_rules(ip: str) -> bool:
    """Whether NAT serves such a client: not this host's loopback, nor link-local addresses."""
    address = ipaddress.ip_address(ip.partition("%")[0])
    return not address.is_loopback and not (address.version == 6 and address.is_link_local)


def packed(ip: str) -> bytes:
    """4 or 16 bytes."""
    return ipaddress.ip_address(ip.partition("%")[0]).packed
