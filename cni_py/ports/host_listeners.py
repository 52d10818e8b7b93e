"""Programs of this host that wait for clients on a port that is to be published: NAT takes their clients away.

`hostListener` of portmap's configuration, or else of /etc/cni-py/config.yaml, says what to do about one:

    warn     say so on stderr and publish the port, as the reference plugin does without a word (the default)
    refuse   error 110 that names the program

A port is held as bind(2) sees it: any address against a specific one conflicts, and a socket on :: without IPV6_V6ONLY holds
IPv4's, too. UDP sockets that are bound and have no peer count; connections and TIME_WAIT do not, nor sockets of other network
namespaces. What is held for the very container that is to have the port is not in its way: see listener_owners.py.
"""

from cni_py import backend
from cni_py.errors import PortInUse, warn
from cni_py.ports import relay
from cni_py.ports.mapping import ByPort, bracketed, is_for_nat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cni_py.attachment.engine import Op
    from cni_py.kernel.sock_diag import Listener
    from cni_py.ports.mapping import Mapping

SAID_MAX = 3  # programs that a warning names
ADVICE = 'stop it, or publish another port; with "hostListener": "warn" in portmap\'s configuration the port is taken from it'


class Container:
    """For whom ports are to be published: `addresses`, in packed form, are what is known of its own."""

    __slots__ = ("addresses", "id", "netns")

    def __init__(self, container_id: str, netns: str, addresses: "Iterable[bytes]" = ()) -> None:
        self.id = container_id
        self.netns = netns
        self.addresses = set(addresses)


class Held:
    """A wanted port that somebody else has."""

    __slots__ = ("holder", "listener", "mapping")

    def __init__(self, mapping: "Mapping", listener: "Listener", holder: str) -> None:
        self.mapping = mapping
        self.listener = listener
        self.holder = holder

    def __str__(self) -> str:
        """port 8080/tcp on 0.0.0.0 is in use by nginx (pid 812)."""
        mapping = self.mapping
        host_ip = bracketed(mapping.host_ip or bytes(len(mapping.container_ip)))
        return f"port {self.listener.port}/{mapping.protocol} on {host_ip} is in use by {self.holder}"


def settle(
    wanted: "Sequence[Mapping]", listeners: "Sequence[Listener]", container: Container, asked: str, steps: "list[Op]"
) -> "list[Op]":
    """Before ports are published on which there are listeners: PortInUse, or lines on stderr; the steps to be taken.

    Where portfwd is asked for the ports, too, it must not steer them to a socket of another port: that it
    does where the container's own runtime holds them. So its word on a port of others is that it cannot listen there.
    """
    foreign = held(in_the_way(wanted, listeners), container)
    if not foreign:
        return steps
    if (asked or backend.load().host_listener) == "refuse":
        raise PortInUse(str(foreign[0]), ADVICE)
    if not any(isinstance(step, relay.RelayPorts) and step.required for step in steps):
        tell([one for one in foreign if is_for_nat(one.listener.ip)], container)
    taken = {(one.mapping.protocol, one.listener.port) for one in foreign}
    return [step.beside(taken) if isinstance(step, relay.RelayPorts) else step for step in steps]


def tell(foreign: "Sequence[Held]", container: Container) -> None:
    """Say whose clients NAT takes."""
    for one in foreign[:SAID_MAX]:
        warn(f"{one}, whose clients now come to container {container.id}")
    if len(foreign) > SAID_MAX:
        more = len(foreign) - SAID_MAX
        warn(f"{more} more ports of container {container.id} are taken from programs of the host")


# Pure: which sockets are in the way


def conflicts(mapping: "Mapping", listener: "Listener") -> bool:
    """Whether the listener could not be bound beside a socket on the mapping's addresses and ports."""
    if listener.protocol != mapping.protocol or not mapping.first <= listener.port <= mapping.last:
        return False
    if len(listener.ip) != len(mapping.container_ip):
        return mapping.family == 4 and not any(listener.ip) and not listener.v6only
    return mapping.host_ip is None or not any(listener.ip) or listener.ip == mapping.host_ip


def in_the_way(wanted: "Sequence[Mapping]", listeners: "Iterable[Listener]") -> "list[tuple[Mapping, Listener]]":
    """The sockets that hold a wanted port, each once, with the first mapping that it is in the way of."""
    by_port = ByPort(wanted)
    found = []
    for listener in listeners:
        near = by_port.having(listener.protocol, listener.port)
        mapping = next((one for one in near if conflicts(one, listener)), None)
        if mapping is not None:
            found.append((mapping, listener))
    return found


# Who holds them


def held(found: "Sequence[tuple[Mapping, Listener]]", container: Container) -> list[Held]:
    """Those that are not there for the container, by port, with who has them."""
    if not found:
        return []
    from cni_py.ports import listener_owners

    holders = listener_owners.foreign([listener for _, listener in found], container)
    foreign = [Held(mapping, one, holders[one.inode]) for mapping, one in found if one.inode in holders]
    return sorted(foreign, key=lambda one: one.listener.port)
