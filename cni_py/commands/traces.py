"""What attachments have on this host, by everything that names one: records, marks in the kernel, files of host-local and libcni.

Each source tells of things, and of what is known of the attachment that a thing belongs to. Things are told apart by the mark of
the attachment (its hex). What the Go plugins made in iptables names network and container alone, their table cni_hostport the
container alone: such a trace has an incomplete key, and goes with all the complete ones that it fits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from cni_py.addr import ip_text, parse_address
from cni_py.attachment import records
from cni_py.attachment.context import Kernel
from cni_py.attachment.naming import Attachment
from cni_py.host import spaces
from cni_py.host.liveness import Claim
from cni_py.ownership import is_marked

# In which order things go: what leads to an address before the address is free, and what tells of the attachment last.
FIRST, THEN, LAST = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Thing:
    """Something to remove. `what` is "" for what nobody misses: an entry of an index. `ours`: a plugin of ours made it."""

    what: str
    remove: Callable[[], object]
    order: int = FIRST
    ours: bool = True


@dataclass(slots=True)
class Trace:
    """One attachment: its things, in the order in which they were found, and what is known of it."""

    key: Attachment
    hex: str
    things: list[Thing] = field(default_factory=list)
    # Records of ADDs that did not end, by plugin; in `things`, too
    unfinished: dict[str, Thing] = field(default_factory=dict)
    netns: str = ""
    cookie: int = 0
    namespace: str = ""  # key, where the kernel has no cookies
    macs: set[str] = field(default_factory=set)
    addresses: set[str] = field(default_factory=set)
    host_links: list[str] = field(default_factory=list)
    ours: bool = False
    elsewhere: bool = False  # its record is of another host's network namespace, with which this one shares /run
    foreign: str = ""  # a plugin of its network that is not ours
    number: int = -1  # as Claim has it, and these
    whole: bool = False
    here: bool = False
    stranger: str = ""
    led: str | None = ""  # where its path led to when the claim was made

    @property
    def label(self) -> str:
        """network/containerID/ifname, as far as it is known."""
        return self.key.label.rstrip("/").lstrip("/") or self.hex

    def fits(self, other: Trace) -> bool:
        """Whether this trace, whose key is incomplete, may belong to the other's attachment."""
        mine, theirs = self.key, other.key
        return bool(theirs.ifname) and mine.container_id == theirs.container_id and mine.network in ("", theirs.network)

    def claim(self, busy: frozenset[str]) -> Claim:
        """For liveness.judge()."""
        there = spaces.leads_to(self.netns)
        self.led = there
        return Claim(
            container_id=self.key.container_id,
            ifname=self.key.ifname,
            hex=self.hex,
            netns=self.netns,
            leads_to=there,
            cookie=self.cookie,
            key=self.namespace,
            macs=frozenset(self.macs),
            addresses=frozenset(self.addresses),
            host_links=tuple(self.host_links),
            ours=self.ours,
            busy=self.hex in busy,
            number=self.number,
            whole=self.whole,
            here=self.here or self.ours,
            stranger=self.stranger,
        )


class Traces:
    """All traces, by hex."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.found: dict[str, Trace] = {}
        self.in_use: set[str] = set()  # addresses of all containers, when the namespaces were looked at
        self.forwarded: set[str] = set()  # the words of firewall's rules in iptables

    def of(self, key: Attachment, hexed: str = "") -> Trace:
        """The trace of an attachment, made when it is new."""
        trace = self.found.setdefault(hexed or key.hex, Trace(key, hexed or key.hex))
        if key.container_id and not trace.key.container_id:
            trace.key = key
        return trace

    def owners(self, trace: Trace) -> list[Trace]:
        """The attachments that a trace may belong to: of one whose key is complete, or fits no other, itself."""
        fitting = [] if trace.key.ifname else [other for other in self.found.values() if trace.fits(other)]
        return fitting or [trace]

    def marked(self, comment: str) -> Trace | None:
        """The same for a comment or alias of ours; None for one that is not."""
        if not is_marked(comment):
            return None
        hexed, key = records.attachment_in(comment)
        trace = self.of(key or Attachment("", "", ""), hexed)
        trace.ours = True
        return trace


def address_in(text: str) -> str:
    """The address of "192.0.2.7/24"; "" for what is none."""
    try:
        return ip_text(parse_address(text if "/" in text else f"{text}/0").packed)
    except ValueError:
        return ""
