"""Options of `portfwd publish` and `portfwd run`: what the command line means, and settling which ports it gets."""

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
DISCARD = 9  # a port to ask the routing table with: connecting a UDP socket sends nothing
PROGRESS_S = 1.0  # before, and between, words on long work

SPEC_HELP = "what to publish, as with docker's -p; see below"


@dataclass(frozen=True, slots=True)
class Wish:
    """What the command line asks for."""

    name: str
    publishes: tuple[Publish, ...]
    template: Template
    port_file: str = ""

    def told(self, mapping: Mapping, line: int) -> Mapping:
        """The mapping with the place in the port file, if there is one."""
        return replace(mapping, port_file=self.port_file, port_line=line) if self.port_file else mapping

    def names(self) -> Iterator[str]:
        """Of its mappings, one after the other."""
        if self.name and len(self.publishes) == 1:
            yield self.name
            return
        for number in range(1, len(self.publishes) + 1):
            yield f"{self.name}-{number}" if self.name else new_name()


def add_to(parser: argparse.ArgumentParser) -> None:
    """The options that say what is published and how."""
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
        help="the target's address, IPv6 in brackets when a port follows; the port is the SPEC's container port unless given; "
        f"repeat it to balance between several. With --netns, --pid or --container: the address inside, {spec.INSIDE} by default",
    )
    place = target.add_mutually_exclusive_group()
    place.add_argument("--netns", default="", metavar="PATH|NAME", help="connect from inside this network namespace")
    place.add_argument("--pid", type=_positive, default=0, metavar="PID", help="... from inside that of this process")
    place.add_argument(
        "--container",
        default="",
        metavar="ID|NAME",
        help="... of this container: its ID, a unique beginning, or its name where docker, nerdctl or podman know that",
    )
    target.add_argument("--balance", choices=BALANCES, default="round-robin", help="how several targets share clients")
    clients = parser.add_argument_group("clients")
    clients.add_argument("--allow", action="append", default=[], metavar="CIDR", help="only from here; may be repeated")
    clients.add_argument("--limit", type=_positive, default=0, metavar="N", help="connections (UDP: flows) at a time")
    clients.add_argument(
        "--limit-per-client", type=_positive, default=0, metavar="N", help="the same per client address"
    )
    clients.add_argument(
        "--proxy-protocol",
        type=int,
        choices=(1, 2),
        default=0,
        help="tell the target who the client is by a PROXY protocol header of this version; the target must expect one",
    )
    times = parser.add_argument_group("time limits")
    times.add_argument("--connect-timeout", type=float, default=5.0, metavar="S", help="for reaching a target; 5")
    times.add_argument("--idle", type=float, default=0.0, metavar="S", help="end what is silent; TCP: never, UDP: 90")
    parser.add_argument("--name", default="", help="the mapping's name; with several SPECs NAME-1, NAME-2 ...")
    parser.add_argument(
        "--sticky",
        nargs="?",
        const="",
        metavar="NAME",
        help="random ports get the numbers that they had under this name before, if they are free; --name's if left out",
    )
    parser.add_argument(
        "--port-file", default="", metavar="PATH", help="write the host's ports there, a line for each mapping"
    )


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 9 or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return int(text)


def seconds(text: str) -> float:
    """For argparse: a time that may be 0."""
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 <= found <= 10**6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return found


def read(options: argparse.Namespace) -> Wish:
    """Usage for what cannot be meant."""
    texts = [*options.spec, *options.publish]
    if not texts:
        raise Usage("what is to be published is missing", f"a SPEC: {spec.GRAMMAR}")
    place = Place(netns_path(options.netns), options.pid)
    if options.container:
        place = container_place(options.container)
    targets = options.to or ([spec.INSIDE] if place else [])
    if not targets:
        raise Usage("where it should lead is missing", "--to ADDRESS, --netns, --pid or --container")
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
        raise Usage("--to with a port goes with one SPEC", "the container port of a SPEC is the target's port")
    for name, publish in zip(wish.names(), wish.publishes, strict=True):
        template.mapping(name, publish, publish.host_ports[0] if publish.host_ports else 1)  # to be refused now
    return wish


def resolved(wish: Wish, *, must_exist: bool) -> tuple[Wish, list[str]]:
    """The wish with the addresses of now where a SPEC has a host name, and what a person should know. PortfwdError."""
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
    """By which name the ports are remembered, "" for none. Usage."""
    if options.sticky is None:
        return ""
    if not options.sticky:
        if not options.name:
            raise Usage(
                "--sticky needs a name by which the port is remembered", "--sticky NAME, or --name NAME --sticky"
            )
        return str(options.name)
    if not options.sticky[0].isalpha():  # most likely a SPEC that stands behind
        raise Usage(f"--sticky {options.sticky}: this name does not begin with a letter", "SPECs stand before --sticky")
    return str(options.sticky)


def netns_path(text: str) -> str:
    """The path of a namespace that is named by it or, below /run/netns, by its last part."""
    if not text:
        return ""
    return str(Path(text).absolute()) if "/" in text else f"{NETNS_DIR}/{text}"


def container_place(wanted: str) -> Place:
    """A container by what a person calls it: an ID that CNI plugins were told, its beginning, or a name that a runtime knows.

    Usage when several have the name. What nobody knows stays as it is: it may come later.
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
            if one.pid:  # of a runtime that uses no CNI, and that the service does not ask
                return Place(pid=one.pid)
        return Place(container=one.id)
    return Place(container=wanted)


Offer = Callable[[list[Mapping]], None]  # publish all of them or none: PortInUse, PortfwdError
Withdraw = Callable[[list[Mapping]], None]


def settle(
    wish: Wish, offer: Offer, withdraw: Withdraw, had: Object[str, int] | None = None, notes: list[str] | None = None
) -> list[Mapping]:
    """Publish all of it or nothing: exact ports together, then each other port by trying. PortInUse, PortfwdError.

    `had` are the ports of the sticky name; to `notes` is added what a person should know of them.
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
                log.error("still published, and to be ended with rm: %s: %s", ", ".join(one.id for one in done), error)
        raise
    return done


class Search:
    """Looks for free ports. What sockets hold is read once; who comes later is met by trying."""

    def __init__(self, wish: Wish, offer: Offer, had: Object[str, int]) -> None:
        self.wish = wish
        self.offer = offer
        self.had = had
        self.notes: list[str] = []
        self.ephemeral = local_ports.choosable(_read)
        self._taken: dict[tuple[str, tuple[str, ...]], set[int]] = {}

    def first_free(self, name: str, publish: Publish, line: int) -> Mapping:
        """Publish on the first candidate that can be had. PortInUse, PortfwdError."""
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
                log.info("%s: trying another", error)
            else:
                if had and first != had:
                    self.notes.append(f"{mapping.sticky} gets port {first} instead of {had}: {refusal}")
                return mapping
        wanted = f"{publish.host_ports[0]} to {publish.host_ports[-1]}" if publish.host_ports else "that are random"
        raise PortInUse(f"{publish}: no port is free of those {wanted}", str(refusal or ""))

    def _had(self, publish: Publish) -> int:
        """The number that the sticky name had, 0 for none."""
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
    """Words on work that takes longer than a moment, for people who look on: on stderr, if that is a terminal."""
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
    """What each target takes for the client's address, in a sentence; a relay's own, unless a header tells it more."""
    notes = [_seen(destination) for destination in template.destinations]
    if template.proxy_protocol:
        version = template.proxy_protocol
        return [f"{note}; a PROXY protocol header (version {version}) tells it who the client is" for note in notes]
    return [
        f"{note}, and is not told who the client is (--proxy-protocol would, if it understands that)" for note in notes
    ]


def _seen(destination: Destination) -> str:
    if destination.place:
        inside = loopback_source(destination.address) or "an address of its own namespace"
        return f"{destination.address} in {destination.place} sees every client as {inside}"
    seen = source_toward(destination.address)
    return (
        f"{destination.address} sees every client as {seen}, this host"
        if seen
        else (f"{destination.address}, to which this host has no route now, will see every client as this host")
    )


def loopback_source(ip: str) -> str:
    """The address from which connections to a loopback address come, whichever of 127/8 it is; "" for any other address."""
    return "::1" if ip == "::1" else "127.0.0.1" if ip.startswith("127.") else ""


def source_toward(ip: str) -> str:
    """The address from which this host connects to another; "" without a route."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((ip, DISCARD))
            return str(sock.getsockname()[0])
    except OSError:
        return ""


def find_live(publish: Publish, name: str, live: Sequence[Mapping]) -> Mapping | None:
    """The live mapping that --replace is about: that of the name, else that of the same ports."""
    if name:
        return next((one for one in live if one.id == name), None)
    return next((one for one in live if same_ports(publish, one)), None)


def same_ports(publish: Publish, live: Mapping) -> bool:
    """Whether the SPEC stands for the ports that the mapping has: those of a pool, and random ones, include them."""
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
    """The mappings to put in the place of live ones; those for which there is none are new. Usage."""
    found = []
    for line, (name, publish) in enumerate(zip(wish.names(), wish.publishes, strict=True)):
        if not wish.name and not publish.exact:
            raise Usage(f"{publish}: --replace needs --name where the host's port is not said")
        old = find_live(publish, name if wish.name else "", live)
        if old is not None and old.owner:
            raise Usage(f"mapping {old.id} is not a person's to change", f"it belongs to {old.label or old.owner}")
        if old is not None and not same_ports(publish, old):
            raise Usage(f"mapping {old.id} has other ports or addresses", f"it is {old}")
        first = old.first if old is not None else publish.host_ports[0] if publish.exact and publish.host_ports else 0
        if not first:
            raise PortfwdError(f"there is no mapping {name} to replace", "publish it first, or say the host's port")
        mapping = wish.told(wish.template.mapping(old.id if old is not None else name, publish, first), line)
        found.append(mapping if old is None else replace(mapping, host_ips=old.host_ips))  # in the order they have now
    return found
