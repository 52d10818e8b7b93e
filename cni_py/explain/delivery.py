"""Which socket gets a packet that a namespace delivers to its own programs, or why none does. Pure but for the trail.

Sockets are chosen as the kernel does (inet_lookup, net/ipv4/inet_hashtables.c): a specific address before any address; one that
is bound to a link only for what came by that link.
"""

from __future__ import annotations

from dataclasses import dataclass

from cni_py.explain.packet import Packet
from cni_py.explain.question import Question
from cni_py.explain.routing import ANY as ANY_ADDRESS
from cni_py.explain.routing import family_of, is_loopback, parsed
from cni_py.explain.way import Trail
from cni_py.explain.world import World, allowed, serves, target_of, with_port
from cni_py.host.findings import RECORDS
from cni_py.host.model import Namespace, Port, Relay, Socket

ANY = {*ANY_ADDRESS.values(), "*", ""}
# Programs that hold a published port for a container and never accept a connection: podman's monitor, nerdctl's reserver.
HOLDERS = ("conmon", "nerdctl", "rootlesskit-port")
RELAYS = ("portfwd", "docker-proxy", "rootlessport", "rootlesskit", "slirp4netns", "pasta", "socat")
OURS = "table inet cni_py"


@dataclass(frozen=True, slots=True)
class RelayLeg:
    """Where a relay connects: in `namespace`, to an address and port."""

    namespace: Namespace
    address: str
    port: int


def covers(socket: Socket, address: str) -> bool:
    """Whether a socket's own address lets it get packets to `address`."""
    mine = socket.address.removeprefix("::ffff:") if "." in socket.address else socket.address
    if mine in ANY:
        return not mine or family_of(mine) == family_of(address) or (mine == "::" and not socket.v6only)
    return family_of(mine) == family_of(address) and parsed(mine) == parsed(address)


def on_port(namespace: Namespace, protocol: str, port: int) -> list[Socket]:
    """The sockets of a namespace with a port, on whatever address."""
    return [one for one in namespace.sockets if one.protocol == protocol and one.port == port]


def listening(namespace: Namespace, packet: Packet, iif: str) -> Socket | None:
    """The socket that gets the packet, if any."""
    fitting = [
        one
        for one in on_port(namespace, packet.protocol, packet.destination_port)
        if covers(one, packet.destination) and one.link in ("", iif)
    ]
    return min(fitting, key=lambda one: (one.address in ANY, not one.link), default=None)


def owner_text(socket: Socket) -> str:
    """ "nginx (pid 812)", or what is known."""
    if socket.pid:
        return f"{socket.program or 'a program'} (pid {socket.pid})"
    return socket.program or "a program that cannot be seen"


def socket_text(socket: Socket) -> str:
    """A socket as evidence."""
    by = f" by {owner_text(socket)}" if socket.pid or socket.program else ""
    bound = f" on {socket.link}" if socket.link else ""
    return f"{socket.protocol} {with_port(socket.address or '*', socket.port)}{bound}{by}"


# In a container


def in_container(world: World, trail: Trail, namespace: Namespace, packet: Packet, port: Port | None) -> None:
    """The program in a container that gets the packet. Stopped if there is none."""
    if port is not None and port.container_id:
        _check_whose(world, trail, namespace, packet, port)
    socket = listening(namespace, packet, packet.iif)
    if socket is not None:
        trail.passes("listening", f"{owner_text(socket)} listens", socket_text(socket))
        return
    nobody(trail, namespace, packet)


def _check_whose(world: World, trail: Trail, namespace: Namespace, packet: Packet, port: Port) -> None:
    found = world.container_id(namespace)
    ids = {one.container_id for one in world.attachments(namespace)} | {found}
    if found and port.container_id not in ids:
        wanted = f"container {world.name_of(port.container_id)}"
        what = f"{packet.destination} is now an address of {world.label(namespace)}; the port is published for {wanted}"
        trail.fails("address-moved", what)


def nobody(trail: Trail, namespace: Namespace, packet: Packet) -> None:
    """Say why no socket of a namespace gets the packet. Stopped."""
    asked = with_port(packet.destination, packet.destination_port)
    same = on_port(namespace, packet.protocol, packet.destination_port)
    texts = [socket_text(one) for one in same]
    number = str(packet.destination_port)
    if not same and namespace.names and namespace.process_count == 0:
        trail.fails("container-dead", f"no process is in {trail.where}", namespace.names[0])
    if not same:
        others = sorted({f"{one.port}/{one.protocol}" for one in namespace.sockets})
        listed = f"; there are {', '.join(others[:8])}" if others else "; nothing listens there at all"
        trail.fails("nothing-listens", f"nothing listens on {asked}/{packet.protocol}{listed}", target_port=number)
    loopback = [one for one in same if one.address not in ANY and is_loopback(one.address)]
    if len(loopback) == len(same):
        trail.fails(
            "listens-on-loopback",
            f"{owner_text(same[0])} listens on {loopback[0].address} only",
            *texts,
            target_port=number,
        )
    if all(not _of_family(one, packet.family) for one in same):
        what = f"{owner_text(same[0])} listens on IPv{10 - packet.family} only"
        trail.fails("listens-on-other-family", what, *texts)
    trail.fails("listens-on-other-address", f"{owner_text(same[0])} does not listen on {packet.destination}", *texts)


def _of_family(socket: Socket, family: int) -> bool:
    if socket.address in ("", "*"):
        return True
    return family_of(socket.address) == family or (socket.address == "::" and not socket.v6only)


# On the host


def relays_for(world: World, packet: Packet) -> list[Relay]:
    """portfwd's mappings that have the port on the address."""
    return [
        one
        for one in world.host.relays
        if one.protocol == packet.protocol
        and one.first <= packet.destination_port <= one.last
        and any(_same(host, packet.destination) for host in (one.host_address or "").split(","))
    ]


def _same(host_address: str, address: str) -> bool:
    text = host_address.strip()
    if text in ANY:
        return not text or family_of(text) == family_of(address)
    try:
        return parsed(text) == parsed(address)
    except ValueError:
        return False


def on_host(
    world: World, trail: Trail, packet: Packet, client: str, question: Question, ports: list[Port]
) -> RelayLeg | None:
    """What this host does with a packet for one of its own programs: a relay's next leg; None if a program answers. Stopped.

    `client` is its address.
    """
    fitting = [one for one in ports if serves(one, packet.destination) and packet.destination_port == question.port]
    socket = listening(world.root, packet, packet.iif)
    relayed = [one for one in fitting if one.way != "nat"]
    steered = relays_for(world, packet) if world.host.portfwd.startswith("running") else []
    if socket is not None and not _is_relay(socket, relayed):
        _foreign(trail, socket, fitting, relayed, client)
        return None
    if relayed and (socket is not None or steered):
        _check_allowed(trail, relayed, client)
        who = owner_text(socket) if socket else "portfwd (its BPF program steers the port to one socket)"
        evidence = [socket_text(socket)] if socket else [f"relay {steered[0].id}: {steered[0].listen}"]
        leg = _leg(world, trail, relayed[0], packet)
        target = with_port(leg.address, leg.port)
        place = "" if world.is_host(leg.namespace) else f" in {world.label(leg.namespace)}"
        trail.passes(
            "relayed", f"{who} accepts, and connects to {target}{place}", *evidence,
            certainty="checked" if socket else "assumed",
        )  # fmt: skip
        return leg
    if socket is not None:
        trail.passes("listening", f"{owner_text(socket)} of this host listens", socket_text(socket))
        return None
    _missing(world, trail, packet, client, question, ports, fitting)
    return None


def _is_relay(socket: Socket, relayed: list[Port]) -> bool:
    """Whether a socket is that of the relay which should have it; one without a visible owner is taken for it."""
    program = socket.program.split(" ")
    return bool(relayed) and (not socket.program or any(word.startswith(RELAYS) for word in program[:2]))


def _foreign(trail: Trail, socket: Socket, fitting: list[Port], relayed: list[Port], client: str) -> None:
    """A program of this host has the port."""
    process = owner_text(socket)
    if not fitting:
        trail.passes("listening", f"{process} of this host listens", socket_text(socket))
        return
    if not any(allowed(one, client) for one in fitting):
        _not_allowed(trail, fitting, client)
    if socket.program.startswith(HOLDERS):
        _lost(trail, fitting, f"{process} holds the port and never answers; no rule leads to the container")
    code = "port-taken" if relayed and len(relayed) == len(fitting) else "host-process"
    trail.fails(code, f"{process} of this host answers in place of the container", socket_text(socket), process=process)


def _check_allowed(trail: Trail, ports: list[Port], client: str) -> None:
    if not any(allowed(one, client) for one in ports):
        _not_allowed(trail, ports, client)


def _not_allowed(trail: Trail, ports: list[Port], client: str) -> None:
    listed = ", ".join(ports[0].allow)
    trail.fails("not-allowed", f"{client} is not among the allowed clients: {listed}", f"allow {listed}")


def _leg(world: World, trail: Trail, port: Port, packet: Packet) -> RelayLeg:
    """Where the relay of a publication connects. Stopped if its target's namespace is gone."""
    address, number = target_of(port, packet.destination_port)
    if address and not is_loopback(address):
        return RelayLeg(world.root, address, number)
    for one in world.host.namespaces:
        if port.namespace and port.namespace == one.key:
            return RelayLeg(one, port.inside or "127.0.0.1", number)
        ids = {each.container_id for each in world.attachments(one)} | {world.container_id(one)}
        if port.container_id and port.container_id in ids:
            return RelayLeg(one, address or "127.0.0.1", number)
    if not port.container_id and address:
        return RelayLeg(world.root, address, number)
    whose = f"container {world.name_of(port.container_id)}" if port.container_id else "its target"
    return trail.fails(
        "relay-target-gone", f"the namespace of {whose} does not exist", port=str(packet.destination_port)
    )


def _missing(
    world: World,
    trail: Trail,
    packet: Packet,
    client: str,
    question: Question,
    ports: list[Port],
    fitting: list[Port],
) -> None:
    """Nothing of this host has the port: say what is wrong with its publication. Stopped."""
    asked = with_port(packet.destination, packet.destination_port)
    if not ports:
        _not_published(world, trail, question, asked)
    if not fitting:
        listed = ", ".join(sorted({with_port(one.host_address, question.port) for one in ports}))
        if any(family_of(one.host_address) == packet.family for one in ports):
            first = next(one for one in ports if family_of(one.host_address) == packet.family)
            what = f"the port is published on {listed}, not on {packet.destination}"
            trail.fails("not-this-address", what, address=with_port(first.host_address, question.port))
        if packet.destination == "::1":
            trail.fails("loopback6", f"nothing serves [::1]:{question.port}; the port is published on {listed}")
        trail.fails("family-not-published", f"the port is published on {listed} alone", port=str(question.port))
    if not any(allowed(one, client) for one in fitting):
        _not_allowed(trail, fitting, client)
    natted = [one for one in fitting if one.way != "relay"]
    served_by_nat = packet.destination != "::1" and not parsed(packet.destination).is_link_local
    if any(one.way != "nat" for one in fitting) and not (natted and served_by_nat):
        which = next(one.backend for one in fitting if one.way != "nat")
        name = which if which in ("docker-proxy", "rootlessport") else "portfwd"
        evidence = [f"portfwd: {world.host.portfwd}"] if world.host.portfwd and name == "portfwd" else []
        trail.fails("relay-not-running", f"{name} does not listen on {asked}", *evidence)
    if not served_by_nat:
        trail.fails("loopback6", f"NAT does not lead {asked} anywhere, and no relay listens on it")
    _lost(trail, natted, f"no rule or map element leads {asked} to the container", world)


def _lost(trail: Trail, ports: list[Port], what: str, world: World | None = None) -> None:
    """NAT should have led the packet away. Stopped."""
    port = ports[0]
    to = with_port(port.target, port.target_port) if port.target else "the container"
    text = f"{what}; it should lead to {to}"
    ours = port.source == "cni-py" and port.backend == "nftables"
    if ours and world is not None and not _has_table(world):
        trail.fails("table-missing", f"the nftables table inet cni_py does not exist: {what}")
    mend = {"docker": "systemctl restart docker", "podman": "podman network reload --all"}.get(port.source, "")
    evidence = [f"published by {port.backend or port.source}: {port.place}"] if port.place else []
    if mend:
        trail.fails("element-missing", text, *evidence, cause=f"somebody removed rules of {port.source}: {mend}")
    trail.fails("element-missing", text, *evidence)


def _has_table(world: World) -> bool:
    compact = world.root.nftables.replace(" ", "")
    return '"family":"inet","name":"cni_py"' in compact


def _not_published(world: World, trail: Trail, question: Question, asked: str) -> None:
    """Nobody publishes the port: name what is near. Stopped."""
    same = [one for one in world.host.ports if one.target_port == question.port and one.protocol == question.protocol]
    near = sorted(
        {f"{one.first}/{one.protocol}" for one in world.host.ports}, key=lambda text: _distance(text, question)
    )
    hints = [f"{one.first}/{one.protocol} leads to port {one.target_port} of {_whose(world, one)}" for one in same[:3]]
    if not hints and near:
        hints = [f"published are: {', '.join(near[:8])}"]
    relays = [f"portfwd has {one.listen}" for one in world.host.relays[:3]] if not hints else []
    what = f"nobody publishes {asked}/{question.protocol}"
    if unread := world.gaps(RECORDS):
        cause = "nobody did, or a record that cannot be read names the port: then start its container anew"
        trail.fails("not-published", what, *unread, *hints, cause=cause, port=str(question.port))
    trail.fails("not-published", what, *hints, *relays, port=str(question.port))


def _distance(text: str, question: Question) -> tuple[bool, int]:
    number, _, protocol = text.partition("/")
    return protocol != question.protocol, abs(int(number) - question.port)


def _whose(world: World, port: Port) -> str:
    return f"container {world.name_of(port.container_id)}" if port.container_id else port.target
