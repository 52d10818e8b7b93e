"""nftables rules that lead many TCP ports of this host to one listening socket, which asks SO_ORIGINAL_DST where to.

    this host ── output ─────┐ ::1, fe80::/10   before everybody else's NAT     ┌ specific*: address and port ┐
                             ├ the rest         after cni_py's: DNAT goes first ┼                             ┴→ port of the
    clients ──── prerouting ─┘ never 127/8, ::1                                 └ any*: the port ───────────→    listener

The table `inet portfwd` has constant rules; a mapping is one element of a map, however many ports it has. The first NAT chain
that translates a connection is the last one asked: a port that portmap publishes by DNAT is never taken from it, while
[::1] and link-local addresses, which cannot be forwarded, do not depend on what others make of them.

Only the port is translated (`dnat to :PORT`), so the listening socket must be bound to the wildcard address. `redirect`
would put 127.0.0.1, ::1 or the interface's first address into the packet, which makes connections of this host to its own
link-local addresses hang.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
from dataclasses import dataclass

from cni_py import jsontext
from cni_py.errors import CniError
from cni_py.kernel import libnftables
from cni_py.kernel.netlink import NETLINK_NETFILTER, NFNL_SUBSYS_NFTABLES, Socket
from portfwd.errors import Lacking, PortfwdError, PortInUse
from portfwd.mapping import ANY

log = logging.getLogger("portfwd")

TABLE = "portfwd"
BEFORE, AFTER = -110, -90  # priorities: cni_py and everybody's "dstnat" have -100. nft 1.0.6 knows no names on output
NFT_MSG_GETGEN = NFNL_SUBSYS_NFTABLES << 8 | 16  # linux/netfilter/nf_tables.h
LOOKUPS = {4: ("ip", "ipv4_addr"), 6: ("ip6", "ipv6_addr")}
UNREACHABLE = "{ ::1, fe80::/10 }"  # the kernel forwards neither, so nobody else can serve them

# chain: its hook, and its rules. (Of this host all packets to itself pass lo, with fe80::/10, too, where fib finds no type.)
RULES = {
    "published4": (
        "",
        (
            "meta nfproto ipv4 meta l4proto tcp dnat to :ip daddr . tcp dport map @specific4",
            "meta l4proto tcp dnat to :tcp dport map @any4",
        ),
    ),
    "published6": (
        "",
        (
            "meta nfproto ipv6 meta l4proto tcp dnat to :ip6 daddr . tcp dport map @specific6",
            "meta l4proto tcp dnat to :tcp dport map @any6",
        ),
    ),
    "own_output": (
        f"type nat hook output priority {BEFORE}; policy accept;",
        (f'oifname "lo" ip6 daddr {UNREACHABLE} jump published6',),
    ),
    "own_prerouting": (
        f"type nat hook prerouting priority {BEFORE}; policy accept;",
        ("ip6 daddr fe80::/10 fib daddr type local jump published6",),
    ),
    "output": (
        f"type nat hook output priority {AFTER}; policy accept;",
        ('oifname "lo" meta nfproto vmap { ipv4 : jump published4, ipv6 : jump published6 }',),
    ),
    "prerouting": (
        f"type nat hook prerouting priority {AFTER}; policy accept;",
        (  # a packet for 127/8 from outside must stay what it is until the kernel's martian check
            "ip daddr 127.0.0.0/8 return",
            "ip6 daddr ::1 return",
            "fib daddr type local meta nfproto vmap { ipv4 : jump published4, ipv6 : jump published6 }",
        ),
    ),
}


@dataclass(frozen=True, slots=True, order=True)
class Redirect:
    """One element: ports first..last of an address (packed; empty: any) lead to `port`."""

    family: int
    address: bytes
    first: int
    last: int
    port: int

    @property
    def map_name(self) -> str:
        """The map it belongs into."""
        return f"{'specific' if self.address else 'any'}{self.family}"

    @property
    def where(self) -> str:
        """The host's side of it, for people."""
        ports = f"{self.first}-{self.last}" if self.last > self.first else f"{self.first}"
        return f"port {ports}/tcp on {ipaddress.ip_address(self.address) if self.address else ANY[self.family == 6]}"

    def key(self) -> str:
        """As nft writes it."""
        ports = f"{self.first}-{self.last}" if self.last > self.first else f"{self.first}"
        return f"{ipaddress.ip_address(self.address)} . {ports}" if self.address else ports

    def overlaps(self, other: Redirect) -> bool:
        """Whether one connection could match both."""
        return (
            self.family == other.family
            and (self.address == other.address or not self.address or not other.address)
            and self.first <= other.last
            and other.first <= self.last
        )


def parse(family: int, ports: tuple[int, int], port: int, addresses: tuple[str, ...]) -> list[Redirect]:
    """The elements for one mapping's addresses of a family. PortfwdError when a value is none."""
    first, last = map(int, ports)
    if family not in LOOKUPS or not (0 < first <= last <= 65535 and 0 < int(port) <= 65535):
        raise PortfwdError("not a range of ports to redirect", f"IPv{family} {first}-{last} to {port}")
    found = []
    for text in addresses:
        try:
            address = ipaddress.ip_address(text)
        except ValueError as error:
            raise PortfwdError("not an address to redirect from", text) from error
        if address.version != family or getattr(address, "scope_id", None):
            raise PortfwdError(f"not an IPv{family} address to redirect from", text)
        packed = b"" if address.is_unspecified else address.packed
        found.append(Redirect(family, packed, first, last, int(port)))
    return found


def skeleton() -> str:
    """The text that makes the table, or puts its rules right; elements stay."""
    lines = [f"add table inet {TABLE}"]
    for family, (_, kind) in LOOKUPS.items():
        lines.append(f"add map inet {TABLE} any{family} {{ type inet_service : inet_service; flags interval; }}")
        lines.append(
            f"add map inet {TABLE} specific{family} {{ type {kind} . inet_service : inet_service; flags interval; }}"
        )
    for name, (hook, rules) in RULES.items():
        lines.append(f"add chain inet {TABLE} {name}{f' {{ {hook} }}' if hook else ''}")
        lines.append(f"flush chain inet {TABLE} {name}")
        lines += [f"add rule inet {TABLE} {name} {rule}" for rule in rules]
    return "\n".join(lines) + "\n"


def elements(verb: str, redirects: list[Redirect]) -> str:
    """Text that adds or deletes elements."""
    lines = []
    for one in redirects:
        target = f" : {one.port}" if verb == "add" else ""
        lines.append(f"{verb} element inet {TABLE} {one.map_name} {{ {one.key()}{target} }}\n")
    return "".join(lines)


class Redirects:
    """The table in the network namespace the process is in. It is there as long as anything is redirected."""

    def __init__(self) -> None:
        self._known: set[Redirect] = set()
        self._made = False  # by this process: a predecessor's may have other rules

    def put(self, family: int, ports: tuple[int, int], port: int, *, addresses: tuple[str, ...]) -> None:
        """Lead ports first..last of the host's `addresses` (unspecified: all) to the socket that listens on `port`.

        What is put already is well. PortInUse when ports overlap; Lacking without nf_tables, its Python module, or root.
        What a predecessor left in the table stays until restore() or a conflict with it.
        """
        new = [one for one in parse(family, ports, port, addresses) if one not in self._known]
        for one in new:
            held = next((other for other in self._known if one.overlaps(other)), None)
            if held is not None:
                raise PortInUse(
                    f"{one.where} cannot be redirected", f"{held.where} is redirected to {held.port} already"
                )
        if not new:
            return
        before = set(self._known)
        self._known.update(new)
        try:
            self._change(elements("add", new))
        except BaseException:
            self._known = before
            raise

    def take(self, family: int, ports: tuple[int, int], port: int, *, addresses: tuple[str, ...]) -> None:
        """Undo put(); what is not there any more is well. The table goes with its last element."""
        gone = [one for one in parse(family, ports, port, addresses) if one in self._known]
        if not gone:
            return
        self._known.difference_update(gone)
        if not self._known:
            self.remove_table()
        else:
            self._change(elements("delete", gone))

    def _change(self, text: str) -> None:
        """Do it, or when the table is not as we left it make all of it anew."""
        probe()
        refusal = run(text if self._made else skeleton() + text)
        if refusal:
            log.debug("nftables table %s is made anew: %s", TABLE, refusal)
            self.restore()
        self._made = True

    def restore(self) -> None:
        """Make the table hold what this process has put, and nothing else, in one transaction. PortfwdError."""
        if not self._known:
            self.remove_table()
            return
        probe()
        flushed = "".join(
            f"flush map inet {TABLE} {kind}{family}\n" for family in LOOKUPS for kind in ("any", "specific")
        )
        contents = elements("add", sorted(self._known))
        refusal = run(skeleton() + flushed + contents)
        if refusal:  # another version's, of another make
            refusal = run(f"add table inet {TABLE}\ndelete table inet {TABLE}\n{skeleton()}{contents}")
        if refusal:
            raise PortfwdError(f"nftables refuses the table {TABLE}", refusal)
        self._made = True

    def remove_table(self) -> None:
        """Forget everything; nothing is redirected any more. For the end of the service, too."""
        self._known.clear()
        self._made = False
        try:
            probe()
        except Lacking:
            return  # then there is none
        refusal = run(f"add table inet {TABLE}\ndelete table inet {TABLE}\n")
        if refusal:
            raise PortfwdError(f"cannot remove the nftables table {TABLE}", refusal)

    def is_whole(self) -> bool:
        """Whether the table holds what this process has put, and its rules."""
        if not self._known:
            return True
        rules, found = listing()
        expected = {name: len(rules) for name, (_, rules) in RULES.items()}
        return rules == expected and self._known <= found


def probe() -> None:
    """Lacking when nf_tables or its Python module is not there or not for us. (libnftables would end the process.)"""
    try:
        libnftables.binding()
        socket = Socket(NETLINK_NETFILTER)
    except CniError as error:
        raise Lacking("ports cannot be redirected", str(error)) from error
    except OSError as error:
        raise Lacking("ports cannot be redirected", f"this kernel has no nfnetlink: {error.strerror}") from error
    try:
        socket.request(NFT_MSG_GETGEN, 0, bytes(4))
    except OSError as error:
        why = "that takes CAP_NET_ADMIN" if error.errno == errno.EPERM else "this kernel has no nf_tables"
        raise Lacking("ports cannot be redirected", f"{why}: {error.strerror}") from error
    finally:
        socket.close()


def run(text: str) -> str:
    """Do `text` as one transaction; returns "" or why it was refused, with all of it: nft's caret can point elsewhere."""
    status, _, refusal = libnftables.binding().Nftables().cmd(text)
    return "" if status == 0 else f"{str(refusal).strip()}\nin:\n{text.strip()}"


def listing() -> tuple[dict[str, int], set[Redirect]]:
    """The number of rules per chain, and the elements, that the table has now; nothing when there is none."""
    nft = libnftables.binding().Nftables()
    nft.set_json_output(True)
    nft.set_numeric_proto_output(True)
    status, text, _ = nft.cmd(f"list table inet {TABLE}")
    rules: dict[str, int] = {}
    found: set[Redirect] = set()
    if status != 0:
        return rules, found
    document = jsontext.decode(str(text).encode())
    for entry in _items(document, "nftables"):
        chain = _value(_value(entry, "rule"), "chain")
        if isinstance(chain, str):
            rules[chain] = rules.get(chain, 0) + 1
        name = _value(_value(entry, "map"), "name")
        for element in _items(_value(entry, "map"), "elem") if isinstance(name, str) else ():
            known = _redirect(str(name), element)
            if known is not None:
                found.add(known)
    return rules, found


def _redirect(map_name: str, element: object) -> Redirect | None:
    """From libnftables-json(5): [key, port]; the key a port, {"range": [...]} or {"concat": [address, port or range]}."""
    try:
        key, port = element if isinstance(element, list) else (None, None)
        concat = _items(key, "concat")
        address = ipaddress.ip_address(str(concat[0])).packed if concat else b""
        ports = concat[1] if concat else key
        first, last = _items(ports, "range") or (ports, ports)
        return Redirect(int(map_name[-1]), address, _port(first), _port(last), _port(port))
    except (ValueError, IndexError):
        return None


def _port(value: object) -> int:
    return int(str(value))


def _value(node: object, name: str) -> object:
    return node.get(name) if isinstance(node, dict) else None


def _items(node: object, name: str) -> list[object]:
    value = _value(node, name)
    return list(value) if isinstance(value, list) else []
