"""All mappings of one process: published, changed, removed, counted.

relay = Relay(poller, places, redirects=Redirects())
relay.publish(mapping)            listens, all addresses or none; returns what a person should know
relay.replace(mapping)            the same ports lead elsewhere from the next connection on
relay.remove(id, drain_s)         stops listening now; what runs may end by itself
relay.sweep()                     every SWEEP_S: time limits
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from portfwd import listeners
from portfwd.accepting import BACK_OFF_S, Listener
from portfwd.claims import Claims
from portfwd.counters import Counters
from portfwd.errors import Lacking, NotFound, PortfwdError, PortInUse, Unfit, Usage
from portfwd.listeners import NoSuchFamily
from portfwd.loops import plain_ip, way_back
from portfwd.mapping import RANGE_MIN, Mapping, Target, check_use
from portfwd.port import TcpPort
from portfwd.splice import Pipes
from portfwd.tcp import RESET
from portfwd.udp import UdpPort

if TYPE_CHECKING:
    from portfwd.places import Places
    from portfwd.poller import Poller

log = logging.getLogger("portfwd")

SWEEP_S = 0.25
LOOK_AT_ALL_S = 2.0  # between two looks at every connection


class Redirector(Protocol):
    """What Redirects (redirect.py) does for a Relay."""

    def put(self, family: int, ports: tuple[int, int], port: int, *, addresses: tuple[str, ...]) -> None: ...

    def take(self, family: int, ports: tuple[int, int], port: int, *, addresses: tuple[str, ...]) -> None: ...


class Published:
    """One mapping and what serves it."""

    __slots__ = ("mapping", "redirected", "server")

    def __init__(self, mapping: Mapping, server: TcpPort | UdpPort, redirected: tuple[str, ...]) -> None:
        self.mapping = mapping
        self.server = server
        self.redirected = redirected  # those of its addresses that a redirect rule serves


class Relay:
    """See the module. For one thread: that of the event loop with `poller`."""

    def __init__(self, poller: Poller, places: Places, *, redirects: Redirector | None = None) -> None:
        self.poller = poller
        self.places = places
        self.redirects = redirects
        self.pipes = Pipes()
        self._published: dict[str, Published] = {}
        self._draining: list[TcpPort | UdpPort] = []
        self._claims = Claims()
        self.redirect_listeners: dict[int, Listener] = {}  # by family, 4 and 6
        self._next_look = 0.0
        self._said = 0.0

    @property
    def mappings(self) -> dict[str, Mapping]:
        """By id, in the order of publishing."""
        return {name: published.mapping for name, published in self._published.items()}

    def publish(self, mapping: Mapping, sockets: Sequence[socket.socket] = ()) -> list[str]:
        """Listen for a mapping, on sockets already bound if given (they are taken over). All of it or none.

        PortInUse names the holder; Usage when the id is taken. Returns sentences on what was left out.
        """
        if mapping.id in self._published:
            raise Usage(f"there is a mapping {mapping.id} already", "choose another name, or replace it")
        self._refuse(mapping)
        notes: list[str] = []
        bound = Bound(mapping, sockets)
        try:
            redirected = self._listen(bound, notes)
            server = self._serve(mapping, bound)
            try:
                self._redirect(mapping, redirected)
            except BaseException:
                server.close()
                raise
        except BaseException:
            bound.close()
            raise
        self._published[mapping.id] = Published(mapping, server, redirected)
        self._claims.put(mapping)
        self._retain(mapping)
        return notes

    def _refuse(self, mapping: Mapping) -> None:
        """PortInUse for ports of another mapping, Usage for a loop."""
        held = self._claims.holder(mapping)
        if held is not None:
            other = self._published[held[0]].mapping
            raise PortInUse(f"port {held[1]}/{mapping.protocol} is in use by mapping {other.id}", str(other))
        self._refuse_loop(mapping)

    def move(self, name: str, host_ips: Sequence[str]) -> dict[str, PortfwdError]:
        """Other addresses for a mapping that follows them; returns those that cannot be had. NotFound.

        Running connections stay; a listener on an address that is meant before and after stays, too.
        """
        published = self._found(name)
        old, server = published.mapping, published.server
        server.leave([ip for ip in old.host_ips if ip not in host_ips])
        refused: dict[str, PortfwdError] = {}
        for ip in host_ips:
            if ip not in old.host_ips:
                bound = Bound(replace(old, host_ips=(ip,)), ())
                try:
                    self._refuse(bound.mapping)
                    bound.bind(ip)
                    server.listen_on(bound.sockets)
                except PortfwdError as error:
                    refused[ip] = error
                except OSError as error:
                    server.leave([ip])
                    bound.close()
                    refused[ip] = Lacking(f"cannot watch the ports of {name} on {ip}", error.strerror or str(error))
        self._claims.take(old)
        published.mapping = server.mapping = replace(old, host_ips=tuple(ip for ip in host_ips if ip not in refused))
        self._claims.put(published.mapping)
        return refused

    def _retain(self, changed: Mapping) -> None:
        """Tell which namespaces are meant from now on, where a mapping that came, went or changed names one."""
        if any(target.place for target in changed.targets):
            targets = [target for published in self._published.values() for target in published.mapping.targets]
            self.places.retain({target.place for target in targets if target.place})

    def _refuse_loop(self, mapping: Mapping) -> None:
        """Usage for what cannot be meant: a connection that leads back to where it was accepted makes another, and so on."""
        check_use(mapping)
        way = way_back(mapping, self._having, self._is_here)
        if way:
            through = f", by way of {', '.join(one.id for one in way[1:])}" if way[1:] else ""
            raise Unfit(f"{mapping} leads back to itself{through}", "its target is a port of this host that we serve")

    def _having(self, protocol: str, ports: range) -> list[Mapping]:
        return [self._published[name].mapping for name in self._claims.having(protocol, ports)]

    def _is_here(self, target: Target) -> bool:
        return self.places.means_here(target.place) and listeners.is_local(plain_ip(target.address))

    def _listen(self, bound: Bound, notes: list[str]) -> tuple[str, ...]:
        """Bind what is to be bound; returns the addresses left to a redirect rule."""
        mapping = bound.mapping
        redirected: list[str] = []
        refusal: PortfwdError | None = None
        for ip in mapping.host_ips:
            if bound.has(ip):
                continue
            try:
                if self._prefers_redirect(mapping):
                    if (
                        mapping.redirect == "auto" and not mapping.owner
                    ):  # portmap knows what a runtime keeps for the container
                        listeners.refuse_held(mapping.protocol, ip, mapping.first, mapping.last)
                    self._listener(6 if ":" in ip else 4)
                    redirected.append(ip)
                else:
                    bound.bind(ip)
            except NoSuchFamily as error:
                refusal = error
                notes.append(f"{mapping.span} is not published on [{ip}]: {error.details}")
            except PortInUse:
                if mapping.redirect != "fallback" or mapping.protocol != "tcp" or self.redirects is None:
                    raise
                redirected.append(ip)
        if refusal is not None and not bound.sockets and not redirected:
            raise refusal
        return tuple(redirected)

    def _prefers_redirect(self, mapping: Mapping) -> bool:
        if mapping.protocol != "tcp":
            return False
        if mapping.redirect == "always" and self.redirects is None:
            raise Lacking("redirect: always", "this process has no nf_tables, or was told not to use it")
        long = len(mapping.ports) >= RANGE_MIN and mapping.redirect == "auto" and self.redirects is not None
        return long or mapping.redirect == "always"

    def _serve(self, mapping: Mapping, bound: Bound) -> TcpPort | UdpPort:
        if mapping.protocol == "tcp":
            ours = [Listener(sock, ip, port) for sock, ip, port in bound.sockets]
            return self.tcp_port(mapping, ours)
        return self.udp_port(mapping, [(sock, port) for sock, _, port in bound.sockets])

    def tcp_port(self, mapping: Mapping, ours: Sequence[Listener]) -> TcpPort:
        """The TCP side of a mapping, with its listeners. Lacking."""
        return TcpPort(mapping, ours, self.places, self.poller, self.pipes, self._pause_redirected)

    def udp_port(self, mapping: Mapping, bound: Sequence[tuple[socket.socket, int]]) -> UdpPort:
        """The UDP side of a mapping, with its sockets and the port of each."""
        return UdpPort(
            mapping,
            [sock for sock, _ in bound],
            [port for _, port in bound],
            self.places,
            self.poller,
            Counters(),
        )

    def _redirect(self, mapping: Mapping, ips: tuple[str, ...]) -> None:
        done: list[int] = []
        try:
            for family, addresses in by_family(ips):
                self._redirects().put(
                    family, (mapping.first, mapping.last), self._listener(family), addresses=addresses
                )
                done.append(family)
        except BaseException:
            self._unredirect(mapping, tuple(ip for family, some in by_family(ips) if family in done for ip in some))
            raise

    def _unredirect(self, mapping: Mapping, ips: tuple[str, ...]) -> None:
        for family, addresses in by_family(ips):
            self._redirects().take(family, (mapping.first, mapping.last), self._listener(family), addresses=addresses)

    def _redirects(self) -> Redirector:
        if self.redirects is None:
            raise Lacking("no redirect rules can be made here")
        return self.redirects

    def _listener(self, family: int) -> int:
        """The port of the socket to which rules of a family redirect; made when first needed."""
        listener = self.redirect_listeners.get(family)
        if listener is None:
            sock = listeners.bind_tcp("::" if family == 6 else "0.0.0.0", 0)  # noqa: S104  it serves what is redirected only
            listener = self.adopt_listener(family, sock)
        return int(listener.sock.getsockname()[1])

    def adopt_listener(self, family: int, sock: socket.socket) -> Listener:
        """Use this socket for what is redirected. Lacking."""
        listener = Listener(sock, "", 0)
        try:
            listener.listen(self.poller, self)
        except OSError as error:
            listener.close()
            raise Lacking("cannot watch the socket of redirected ports", error.strerror or str(error)) from error
        self.redirect_listeners[family] = listener
        return listener

    def take_on(self, client: socket.socket, address: tuple[str, int], _: Listener) -> None:
        """A client that was redirected here."""
        wanted = listeners.original_destination(client)
        name = self._claims.find("tcp", *wanted) if wanted is not None else ""
        server = self._published[name].server if name else None
        if wanted is None or not isinstance(server, TcpPort):
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            client.close()
            return
        server.begin(client, address, wanted[1], wanted[0])

    def lacking(self, why: str) -> None:
        """Clients that are redirected wait in the backlog."""
        self.pipes.close()
        if self.poller.now >= self._said:
            self._said = self.poller.now + 1.0
            log.warning("cannot accept redirected connections: %s; trying again every %g s", why, BACK_OFF_S)

    def _pause_redirected(self) -> None:
        for listener in self.redirect_listeners.values():
            listener.pause()

    def replace(self, mapping: Mapping) -> None:
        """Other targets and options for a mapping; its ports and addresses stay. NotFound, Usage."""
        published = self._found(mapping.id)
        self._refuse_loop(mapping)
        old = published.mapping
        same = ("protocol", "host_ips", "first", "last")
        if any(getattr(old, name) != getattr(mapping, name) for name in same):
            raise Usage(f"mapping {mapping.id} has other ports or addresses", "remove it and publish it anew")
        published.mapping = mapping
        published.server.update(mapping)
        self._retain(old)
        self._retain(mapping)

    def remove(self, name: str, drain_s: float = 0.0) -> None:
        """Stop listening for a mapping; its connections are cut after drain_s seconds. NotFound."""
        published = self._found(name)
        del self._published[name]
        self._claims.take(published.mapping)
        self._retain(published.mapping)
        try:
            self._unredirect(published.mapping, published.redirected)
        except PortfwdError as error:
            log.warning("%s: cannot remove the redirect rule: %s", name, error)
        if drain_s > 0:
            published.server.drain(self.poller.now + drain_s)
            self._draining.append(published.server)
        else:
            published.server.close()

    @property
    def published(self) -> list[Published]:
        """All mappings with what serves them."""
        return list(self._published.values())

    @property
    def draining_servers(self) -> list[TcpPort | UdpPort]:
        """Those of mappings that were removed, as long as a connection runs."""
        return list(self._draining)

    def adopt(self, mapping: Mapping, server: TcpPort | UdpPort, redirected: tuple[str, ...]) -> None:
        """Take a mapping over from a predecessor, its sockets in `server` and its redirect rules as they are."""
        self._redirect(mapping, redirected)
        self._published[mapping.id] = Published(mapping, server, redirected)
        self._claims.put(mapping)

    def adopt_draining(self, server: TcpPort | UdpPort) -> None:
        """The same for the connections of a mapping that is gone."""
        self._draining.append(server)

    def _found(self, name: str) -> Published:
        published = self._published.get(name)
        if published is None:
            raise NotFound(f"there is no mapping {name}")
        return published

    def server(self, name: str) -> TcpPort | UdpPort:
        """What serves a mapping. NotFound."""
        return self._found(name).server

    def stats(self) -> dict[str, dict[str, object]]:
        """Per id: the counters, which targets do not answer, and which addresses a redirect rule serves."""
        now = self.poller.now
        left_out = listeners.left_out()
        return {
            name: {
                **published.server.counters.to_json(),
                "dead_targets": [str(target) for target in published.server.balancer.dead(now)],
                "redirected": list(published.redirected),
                "left_out": [ip for ip in published.mapping.host_ips if ip in left_out],
            }
            for name, published in self._published.items()
        }

    @property
    def draining(self) -> int:
        """Connections of mappings that were removed."""
        return sum(server.counters.active for server in self._draining)

    def sweep(self) -> None:
        """Apply time limits; to be called every SWEEP_S."""
        now = self.poller.now
        servers = [published.server for published in self._published.values()] + self._draining
        for listener in self.redirect_listeners.values():
            listener.resume(self.poller)
        self.places.tcp_legs.sweep()
        thorough = now >= self._next_look
        if thorough:
            self._next_look = now + LOOK_AT_ALL_S
            self.places.expire(now)
        self._share_descriptors(servers, now)
        for server in servers:
            server.sweep(now)
            if thorough:
                server.look_at_all(now)
        self._draining = [server for server in self._draining if server.counters.active]

    def _share_descriptors(self, servers: Sequence[TcpPort | UdpPort], now: float) -> None:
        """TCP clients wait in a backlog for what UDP flows hold to the end of their idle time."""
        starving = [server for server in servers if isinstance(server, TcpPort) and server.starving]
        for server in starving:
            server.starving = False
        for flows in servers if starving else ():
            if isinstance(flows, UdpPort):
                flows.give_up(now)

    def drain(self, drain_s: float) -> None:
        """Remove all mappings, each with this limit."""
        for name in list(self._published):
            self.remove(name, drain_s)

    def close(self) -> None:
        """Cut everything."""
        self.drain(0.0)
        for server in self._draining:
            server.close()
        self._draining.clear()
        for listener in self.redirect_listeners.values():
            listener.close()
        self.redirect_listeners.clear()
        self.pipes.close()


class Bound:
    """The sockets of a mapping while it is being published."""

    __slots__ = ("mapping", "sockets")

    def __init__(self, mapping: Mapping, given: Iterable[socket.socket]) -> None:
        self.mapping = mapping
        self.sockets: list[tuple[socket.socket, str, int]] = []
        for sock in given:
            self._accept(sock)

    def _accept(self, sock: socket.socket) -> None:
        ip, port = sock.getsockname()[:2]
        kind = socket.SOCK_STREAM if self.mapping.protocol == "tcp" else socket.SOCK_DGRAM
        if sock.type != kind or ip not in self.mapping.host_ips or port not in self.mapping.ports:
            raise Usage(f"the socket given is bound to {ip} port {port}, which is not the mapping's", str(self.mapping))
        if kind == socket.SOCK_STREAM:
            listeners.listen(sock, ip, port)
        else:
            listeners.prepare_udp(sock)
        self.sockets.append((sock, ip, port))

    def has(self, ip: str) -> bool:
        """Whether a socket was given for the address."""
        return any(known == ip for _, known, _ in self.sockets)

    def bind(self, ip: str) -> None:
        """All ports on an address, or none."""
        make = listeners.bind_tcp if self.mapping.protocol == "tcp" else listeners.bind_udp
        new: list[tuple[socket.socket, str, int]] = []
        try:
            new.extend((make(ip, port), ip, port) for port in self.mapping.ports)
        except BaseException:
            for sock, _, _ in new:
                sock.close()
            raise
        self.sockets += new

    def close(self) -> None:
        """All of them; those given, too."""
        for sock, _, _ in self.sockets:
            sock.close()


def by_family(ips: Iterable[str]) -> list[tuple[int, tuple[str, ...]]]:
    """Addresses by family, 4 and 6, without families that have none."""
    found = {4: tuple(ip for ip in ips if ":" not in ip), 6: tuple(ip for ip in ips if ":" in ip)}
    return [(family, some) for family, some in found.items() if some]
