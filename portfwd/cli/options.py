"""Options of `portfwd publish` and `portfwd run`: reading the command line, and finding free ports for it."""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Mapping as Object
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from cni_py.ports import local_ports
from portfwd import follow, spec
from portfwd.errors import NotFound, PortfwdError, PortInUse, Usage
from portfwd.mapping import ANY, BALANCES, Mapping, Place
from portfwd.netns import containers, sockets
from portfwd.relay import addresses, holders
from portfwd.service import sticky
from portfwd.service.store import new_name
from portfwd.spec import Destination, Publish, Template

log = logging.getLogger("portfwd")

NETNS_DIR = "/run/netns"
DISCARD = 9  # any port: connect(2) of a UDP socket looks up the route and sends nothing
PROGRESS_S = 1.0  # before the first line on long work, and between two

SPEC_HELP = "what to publish, as with docker's -p; see below"


@dataclass(frozen=True, slots=True)
class Wish:
    """The request of the command line."""

    name: str
    publishes: tuple[Publish, ...]
    template: Template
    port_file: str = ""

    def told(self, mapping: Mapping, line: int) -> Mapping:
        """The mapping with its line of the port file, if there is one."""
        return replace(mapping, port_file=self.port_file, port_line=line) if self.port_file else mapping

    def names(self) -> Iterator[str]:
        """The ids of its mappings, in the order of `publishes`."""
        if self.name and len(self.publishes) == 1:
            yield self.name
            return
        for number in range(1, len(self.publishes) + 1):
            yield f"{self.name}-{number}" if self.name else new_name()


def add_to(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what is published and how."""
    parser.add_argument("spec", nargs="*", metavar="SPEC", help=SPEC_HELP)
    parser.add_argument(
        "-p", "--publish", action="append", default=[], metavar="SPEC", help="the same; may be repeated"
    )
    target = parser.add_argument_group("where it leads")
    target.add_argument(
        "--to",
        action="append",
        default=[],
        metavar="ADDRESS[:PORT]",
        help="the target's address, IPv6 in brackets when a port follows (default port: the SPEC's container port); "
        f"may be repeated to balance. With --netns, --pid or --container: the address inside (default: {spec.INSIDE})",
    )
    place = target.add_mutually_exclusive_group()
    place.add_argument("--netns", default="", metavar="PATH|NAME", help="connect from inside this network namespace")
    place.add_argument(
        "--pid", type=_positive, default=0, metavar="PID", help="... the network namespace of this process"
    )
    place.add_argument(
        "--container",
        default="",
        metavar="ID|NAME",
        help="... that of this container: its ID, a unique beginning of it, or its name in Docker, nerdctl or podman",
    )
    target.add_argument(
        "--balance",
        choices=BALANCES,
        default="round-robin",
        help="how clients are spread over several targets (default: round-robin)",
    )
    _add_clients(parser.add_argument_group("clients"))
    times = parser.add_argument_group("time limits")
    times.add_argument(
        "--connect-timeout",
        type=float,
        default=5.0,
        metavar="S",
        help="seconds for connecting to a target (default: 5)",
    )
    times.add_argument(
        "--idle",
        type=float,
        default=0.0,
        metavar="S",
        help="seconds after which an idle connection ends (default: TCP never, UDP 90)",
    )
    parser.add_argument("--name", default="", help="the mapping's name; several SPECs are named NAME-1, NAME-2 ...")
    parser.add_argument(
        "--sticky",
        nargs="?",
        const="",
        metavar="NAME",
        help="give random ports the numbers that they had under this name before, if free (default NAME: that of --name)",
    )
    parser.add_argument(
        "--port-file", default="", metavar="PATH", help="write the host's ports to this file, a line for each mapping"
    )


def _add_clients(clients: argparse._ArgumentGroup) -> None:
    clients.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="CIDR",
        help="admit only clients of this network; may be repeated",
    )
    clients.add_argument(
        "--limit", type=_positive, default=0, metavar="N", help="at most N connections (UDP: flows) at a time"
    )
    clients.add_argument(
        "--limit-per-client", type=_positive, default=0, metavar="N", help="at most N per client address"
    )
    clients.add_argument(
        "--proxy-protocol",
        type=int,
        choices=(1, 2),
        default=0,
        help="send the client's address to the target in a PROXY protocol header of this version; the target must expect it",
    )


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 9 or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return int(text)


def seconds(text: str) -> float:
    """A number of seconds, 0 or more, for argparse."""
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 <= found <= 10**6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return found


def read(options: argparse.Namespace) -> Wish:
    """Read the options. Usage."""
    texts = [*options.spec, *options.publish]
    if not texts:
        raise Usage("nothing to publish: a SPEC is missing", spec.GRAMMAR)
    place = Place(netns_path(options.netns), options.pid)
    if options.container:
        place = container_place(options.container)
    targets = options.to or ([spec.INSIDE] if place else [])
    if not targets:
        raise Usage("the target is missing", "--to ADDRESS, --netns, --pid or --container")
    template = Template(
        destinations=tuple(spec.destination(text, place) for text in targets),
        balance=options.balance,
        allow=tuple(options.allow),
        limit=options.limit,
        limit_per_client=options.limit_per_client,
        proxy_protocol=options.proxy_protocol,
        connect_timeout_s=options.connect_timeout,
        idle_s=options.idle,
        sticky=sticky_name(options),
    )
    port_file = os.path.abspath(options.port_file) if options.port_file else ""
    wish = Wish(options.name, tuple(spec.parse_all(texts)), template, port_file)
    if template.sticky and all(publish.host_ports is not None for publish in wish.publishes):
        raise Usage("--sticky is for random ports", "leave the host's port out of the SPEC: 80 or 127.0.0.1::80")
    if len(wish.publishes) > 1 and any(destination.port for destination in template.destinations):
        raise Usage(
            "--to with a port needs a single SPEC", "otherwise the container port of each SPEC is the target's port"
        )
    for name, publish in zip(wish.names(), wish.publishes, strict=True):
        template.mapping(name, publish, publish.host_ports[0] if publish.host_ports else 1)  # raises Usage now
    return wish


def resolved(wish: Wish, *, must_exist: bool) -> tuple[Wish, list[str]]:
    """The wish with the present addresses of host names, and notes for people. PortfwdError."""
    publishes = []
    notes = []
    for publish in wish.publishes:
        ips: list[str] = []
        if publish.follow.startswith(follow.NAME):
            try:
                ips = addresses.resolve(follow.shown(publish.follow))
            except PortfwdError as error:
                if must_exist:
                    raise
                notes.append(str(error))
        publishes.append(replace(publish, host_ips=tuple(ips)) if publish.follow else publish)
    return replace(wish, publishes=tuple(publishes)), notes


def sticky_name(options: argparse.Namespace) -> str:
    """The name under which random ports are remembered; "" for none. Usage."""
    if options.sticky is None:
        return ""
    if not options.sticky:
        if not options.name:
            raise Usage(
                "--sticky needs a name by which the port is remembered", "--sticky NAME, or --name NAME --sticky"
            )
        return str(options.name)
    if not options.sticky[0].isalpha():  # most likely a SPEC behind --sticky
        raise Usage(f"--sticky {options.sticky}: this name does not begin with a letter", "SPECs stand before --sticky")
    return str(options.sticky)


def netns_path(text: str) -> str:
    """The path of a namespace, given as a path or as a name in /run/netns."""
    if not text:
        return ""
    return str(Path(text).absolute()) if "/" in text else f"{NETNS_DIR}/{text}"


def container_place(wanted: str) -> Place:
    """The place of a container, given as an ID of CNI's, the beginning of one, or a name in a runtime.

    Usage when several containers have the name. An unknown one stays as it is written: it may come later.
    """
    if sockets.recorded(wanted) or sockets.cached(wanted):
        return Place(container=wanted)
    found = {one.id: one for one in containers.named(wanted)}
    if len(found) > 1:
        raise Usage(f"container {wanted}: several have that name", f"give an ID: {sockets.listed(found)}")
    for one in found.values():
        try:
            sockets.container_netns(one.id)
        except NotFound:
            if one.pid:  # of podman, say: it has no attachment record, and the service does not ask podman
                return Place(pid=one.pid)
        return Place(container=one.id)
    return Place(container=wanted)


Offer = Callable[[list[Mapping]], None]  # publish all of them or none: PortInUse, PortfwdError
Withdraw = Callable[[list[Mapping]], None]


def settle(
    wish: Wish, offer: Offer, withdraw: Withdraw, had: Object[str, int] | None = None, notes: list[str] | None = None
) -> list[Mapping]:
    """Publish the whole wish or nothing: exact ports in one request, then each other port by trying. PortInUse, PortfwdError.

    `had` are the ports remembered under the sticky name, by container port. Notes on them are added to `notes`.
    """
    done: list[Mapping] = []
    named = list(zip(wish.names(), wish.publishes, strict=True))
    exact = [
        wish.told(wish.template.mapping(name, one, one.host_ports[0]), line)
        for line, (name, one) in enumerate(named)
        if one.exact and one.host_ports
    ]
    try:
        if exact:
            offer(exact)
            done += exact
        search = Search(wish, offer, had or {})
        with progress("ports found", len(named)) as tell:
            for name, publish in named[len(exact) :]:
                done.append(search.first_free(name, publish, len(done)))
                tell(len(done))
        if notes is not None:
            notes += search.notes
    except BaseException:
        if done:
            try:
                withdraw(done)
            except PortfwdError as error:
                log.error("still published; end them with rm: %s: %s", ", ".join(one.id for one in done), error)
        raise
    return done


class Search:
    """Looks for free ports. The ports that sockets hold are read once; later ones show when publishing fails."""

    def __init__(self, wish: Wish, offer: Offer, had: Object[str, int]) -> None:
        self.wish = wish
        self.offer = offer
        self.had = had
        self.notes: list[str] = []
        self.ephemeral = local_ports.choosable(_read)
        self._taken: dict[tuple[str, tuple[str, ...]], set[int]] = {}

    def first_free(self, name: str, publish: Publish, line: int) -> Mapping:
        """Publish on the first free candidate. PortInUse, PortfwdError."""
        hosts = (publish.protocol, publish.host_ips or ANY)
        taken = self._taken.get(hosts)
        if taken is None:
            taken = self._taken[hosts] = holders.taken(*hosts)
        refusal: PortInUse | None = None
        had = self._had(publish)
        others = spec.candidates(publish, self.ephemeral, sticky.random_start(self.ephemeral), taken)
        for first in chain([had] if had else [], others):
            mapping = self.wish.told(self.wish.template.mapping(name, publish, first), line)
            taken.add(first)
            try:
                self.offer([mapping])
            except PortInUse as error:
                refusal = error
                log.info("%s; trying another port", error)
            else:
                if had and first != had:
                    self.notes.append(f"{mapping.sticky} gets port {first} instead of {had}: {refusal}")
                return mapping
        wanted = f"between {publish.host_ports[0]} and {publish.host_ports[-1]}" if publish.host_ports else "at random"
        raise PortInUse(f"{publish}: found no free port {wanted}", str(refusal or ""))

    def _had(self, publish: Publish) -> int:
        """The port remembered under the sticky name, 0 for none."""
        if publish.host_ports is not None or not self.had:
            return 0
        return self.had.get(sticky.key_of(self.wish.template.mapping("any", publish, 1)), 0)


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


@contextmanager
def progress(what: str, whole: int) -> Iterator[Callable[[int], None]]:
    """A line on the progress of long work, on stderr if that is a terminal."""
    said = time.monotonic()
    shown = False

    def tell(done: int) -> None:
        nonlocal said, shown
        now = time.monotonic()
        if sys.stderr.isatty() and now - said >= PROGRESS_S:
            said, shown = now, True
            sys.stderr.write(f"\r{done} of {whole} {what}")
            sys.stderr.flush()

    try:
        yield tell
    finally:
        if shown:
            sys.stderr.write("\n")


def source_notes(template: Template) -> list[str]:
    """A sentence for each target: which address it sees in place of its clients' own."""
    notes = [_seen(destination) for destination in template.destinations]
    if template.proxy_protocol:
        version = template.proxy_protocol
        return [f"{note}; a PROXY protocol header (version {version}) has the client's address" for note in notes]
    return [f"{note}; --proxy-protocol would send it the client's address, if it understands that" for note in notes]


def _seen(destination: Destination) -> str:
    if destination.place:
        inside = loopback_source(destination.address) or "an address of its own namespace"
        return f"{destination.address} in {destination.place} sees every client as {inside}"
    seen = source_toward(destination.address)
    return (
        f"{destination.address} sees every client as {seen}, this host"
        if seen
        else (f"{destination.address} will see every client as this host, which has no route to it now")
    )


def loopback_source(ip: str) -> str:
    """The source address of connections to a loopback address; "" for any other address."""
    return "::1" if ip == "::1" else "127.0.0.1" if ip.startswith("127.") else ""


def source_toward(ip: str) -> str:
    """The source address of connections from this host to `ip`; "" without a route."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((ip, DISCARD))
            return str(sock.getsockname()[0])
    except OSError:
        return ""


def find_live(publish: Publish, name: str, live: Sequence[Mapping]) -> Mapping | None:
    """The live mapping to replace: that with the name, or without a name that with the same ports."""
    if name:
        return next((one for one in live if one.id == name), None)
    return next((one for one in live if same_ports(publish, one)), None)


def same_ports(publish: Publish, live: Mapping) -> bool:
    """Whether the SPEC can stand for the mapping's ports: a pool has to include them, random ones always do."""
    if publish.protocol != live.protocol or publish.follow != live.follow:
        return False
    if not publish.follow and set(publish.host_ips) != set(live.host_ips):
        return False
    if len(publish.container_ports) != len(live.ports):
        return False
    if publish.host_ports is None:
        return True
    return live.first in publish.host_ports if publish.pool else live.first == publish.host_ports[0]


def replacements(wish: Wish, live: Sequence[Mapping]) -> list[Mapping]:
    """The mappings that replace live ones, or are new where there is none. Usage; PortfwdError."""
    found = []
    for line, (name, publish) in enumerate(zip(wish.names(), wish.publishes, strict=True)):
        if not wish.name and not publish.exact:
            raise Usage(f"{publish}: --replace needs --name when the SPEC has no host port")
        old = find_live(publish, name if wish.name else "", live)
        if old is not None and old.owner:
            raise Usage(f"mapping {old.id} cannot be replaced", f"it belongs to {old.label or old.owner}")
        if old is not None and not same_ports(publish, old):
            raise Usage(f"mapping {old.id} has other ports or addresses", f"it is {old}")
        first = old.first if old is not None else publish.host_ports[0] if publish.exact and publish.host_ports else 0
        if not first:
            raise PortfwdError(f"there is no mapping {name} to replace", "publish it first, or give the host's port")
        mapping = wish.told(wish.template.mapping(old.id if old is not None else name, publish, first), line)
        found.append(mapping if old is None else replace(mapping, host_ips=old.host_ips))  # in the order they have now
    return found
