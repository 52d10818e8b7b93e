"""Give UDP flows back to NAT that the relay took while nftables was empty, once the rules are back.

Connection tracking decides on NAT with the first packet of a flow. `cni-py restore`, which puts the rules back, has it forget the
flows of their ports. But when a target goes on sending, the relay's next answer to its client makes a tracked flow in which the
client's datagrams are replies, and replies get no DNAT: the flow would stay with the relay as long as it lasts. So the order here
is: end the relay's flows, have tracking forget them, and drop the datagrams that these clients have queued until then.
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
    """Give back the flows of ports for which portmap has rules, unless no rule serves their client."""
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
    """Whether NAT serves such a client: it serves neither loopback nor link-local addresses."""
    address = ipaddress.ip_address(ip.partition("%")[0])
    return not address.is_loopback and not (address.version == 6 and address.is_link_local)


def packed(ip: str) -> bytes:
    """An address as 4 or 16 bytes."""
    return ipaddress.ip_address(ip.partition("%")[0]).packed
