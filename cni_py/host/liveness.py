"""Is an attachment alive? Decided from what was seen; nothing here asks the kernel, a runtime, or a clock.

What is seen must be seen in this order: the claims (who says that there is an attachment), then the runtimes' answers, then the
namespaces (census.py). An attachment that was made meanwhile is then in no claim, and one that is in a claim in all the rest.

    what is seen                                                                  verdict
    a call holds the attachment's lock, or a plugin runs for its container        alive
    its namespace exists (the record's cookie; else the interface, by MAC address
    or alias; else by its name and address, if it is no other attachment's), and
        a process or an open descriptor holds it                                  alive
        mounts alone hold it; the runtime that owns the container answers and
        knows no such container, all other runtimes answer, too                   dead
        mounts alone hold it, otherwise                                           alive
        nothing is seen that holds it, but the host has a number for it           alive: a socket made in it, for example
    its namespace is not found, and
        an interface of the host still leads to a namespace                       unknown: it may be that one
        the record has a cookie; its host interface is recorded, and is gone      dead: it ended with the namespace
        the host has no namespace with the number in the record, or a number is
        with a namespace of another cookie by now                                 dead
        that namespace cannot be entered, and does not show the interface         unknown
        some namespace could not be looked at                                     unknown
        only files tell of it, which may be another host's                        unknown
        the record has neither, but another interface of the namespace is dead    dead
        the record has neither                                                    unknown: a socket may keep the namespace
        a running container of a runtime has the ID, or a runtime is silent       unknown
        the path may not be looked at                                             unknown
        something else is at the path: dead if the owner answers that
        there is no such container                                            else unknown: perhaps it is mounted elsewhere
        the path leads to another namespace: dead if the owner answers that there
        is no such container                                                      else unknown: perhaps it was renamed
        a Go plugin made it without an end on the host (WHOLE)                    unknown: a socket may keep the namespace
        the path leads nowhere, and MAC or addresses of the interface are known   dead: no namespace has them
        no path is known, addresses are; marks of ours name it, or the owner
        answers that there is no such container                                   dead: no namespace has the addresses
        nothing but the path, and another interface of the container with that
        path is dead                                                              dead
        otherwise                                                                 unknown: nothing tells where it was

The owner follows from the ID and the path, since each runtime has a form of its own for them (OWNERS). Pids say nothing here: a
pid is used again. Inode numbers of namespaces are used again, too: where the kernel has no cookies (before Linux 5.14) a
namespace of the recorded inode counts as the attachment's. What the host's numbers for namespaces tell: kernel/nsid.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from cni_py.host.census import Census, Interface, Space
from cni_py.host.containers import Answers
from cni_py.host.model import Liveness

ID = r"[0-9a-f]{64}"
UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
# Container ID and path of the namespace, as each runtime makes them; a path that is not known ("") fits all of them.
OWNERS = (
    ("containerd", ID, rf"(/var)?/run/netns/cni-{UUID}"),  # its CRI plugin, pkg/netns
    ("containerd", rf"[\w.-]+-{ID}", r"/proc/\d+/ns/net"),  # nerdctl, pkg/ocihook
    ("cri-o", ID, rf"(/var)?/run/netns/{UUID}"),  # pinns
    (
        "podman",
        ID,
        rf"(/var)?/run/netns/netns-{UUID}",
    ),  # containers/common, pkg/netns; those of other users are not asked
    ("docker", ID, r"/proc/\d+/ns/net"),  # cri-dockerd
)

OTHER = (
    "no namespace"  # what is at a path: a file on which another host, with which we share /run, may have a namespace
)
NO_MAC = "00:00:00:00:00:00"
LOOPBACK = frozenset({"127.0.0.1", "::1"})
# Plugins whose interface has no end elsewhere
WHOLE = frozenset({"macvlan", "ipvlan", "vlan", "dummy", "tap", "host-device"})
KEPT = "nothing on the host tells whether its network namespace exists: a socket may keep it"

Verdict = tuple[Liveness, str]


@dataclass(frozen=True, slots=True)
class Claim:
    """An attachment as files and marks of the kernel speak of it. What is not known is empty.

    `leads_to`: key of the namespace that `netns` leads to now ("net:[4026532281]"), "" for nothing, OTHER, or None if we may not
    look.
    """

    container_id: str
    ifname: str
    hex: str
    netns: str = ""
    leads_to: str | None = ""
    cookie: int = 0  # of the record
    key: str = ""  # of the record, where the kernel has no cookies
    macs: frozenset[str] = frozenset()  # of the interface in the container
    addresses: frozenset[str] = frozenset()  # the same; without prefix length
    host_links: tuple[str, ...] = ()  # names of the host's ends
    ours: bool = False  # a record, or a mark of ours in the kernel, names it
    busy: bool = False  # a call holds its lock
    number: int = -1  # of the record: by which this host knows the namespace (kernel/nsid)
    whole: bool = False  # a plugin made it that leaves nothing on the host (WHOLE)
    here: bool = False  # a record in /run or the kernel names it: it is no other host's
    stranger: str = ""  # why it seems to be another host's

    def __post_init__(self) -> None:
        """Leave out what lo has in every namespace, since it tells nobody apart."""
        macs = frozenset(mac.lower() for mac in self.macs) - {NO_MAC}
        object.__setattr__(self, "macs", macs)
        object.__setattr__(self, "addresses", self.addresses - LOOPBACK)


@dataclass(frozen=True, slots=True)
class View:
    """What was seen of the host. `owned`: interfaces (key of the namespace, name) that are known to be an attachment's by more
    than an address: after a lost DEL the address may be the next container's.
    """

    census: Census
    answers: Answers = field(default_factory=Answers)
    owned: frozenset[tuple[str, str]] = frozenset()


def owned(claims: Iterable[Claim], census: Census) -> frozenset[tuple[str, str]]:
    """For View.owned."""
    by_cookie = {claim.cookie: claim.ifname for claim in claims if claim.cookie}
    return frozenset(
        (space.key, one.name)
        for space in census.spaces[1:]
        for one in space.interfaces
        if by_cookie.get(space.cookie) == one.name or any(is_certainly(one, claim) for claim in claims)
    )


def judge(claim: Claim, view: View) -> Verdict:
    """Alive, dead or unknown, and why: a part of a sentence, without a full stop."""
    if claim.busy or claim.container_id in view.census.working:
        return "alive", "a plugin is working on it"
    space = space_of(claim, view)
    return of_space(claim, space, view) if space is not None else of_none(claim, view)


def judge_all(claims: Iterable[Claim], view: View) -> dict[str, Verdict]:
    """The verdicts by hex. One of which too little is known (lo) is as dead as another of its namespace: by the record's cookie,
    else by container and path.
    """
    every = list(claims)
    found = {claim.hex: judge(claim, view) for claim in every}
    gone: dict[object, Verdict] = {}
    for claim in every:
        if found[claim.hex][0] == "dead":
            gone[claim.cookie or (claim.container_id, claim.netns)] = found[claim.hex]
            gone[claim.container_id, claim.netns] = found[claim.hex]
    for claim in every:
        bare = not (claim.ours or claim.macs or claim.addresses) and claim.netns
        if found[claim.hex][0] == "unknown" and (claim.cookie or bare):
            found[claim.hex] = gone.get(claim.cookie or (claim.container_id, claim.netns), found[claim.hex])
    return found


def space_of(claim: Claim, view: View) -> Space | None:
    """The namespace that is the attachment's, for certain or as far as anything tells; never the host's, the first."""
    spaces = view.census.spaces[1:]
    if claim.cookie:
        known = next((space for space in spaces if space.cookie == claim.cookie), None)
        if known is not None:
            return known
        spaces = tuple(space for space in spaces if space.unseen and claim.number in (-1, space.number))
    for space in spaces:
        if space.key == claim.key or any(is_certainly(one, claim) for one in space.interfaces):
            return space
    for space in spaces:
        if any(is_perhaps(one, claim) and (space.key, one.name) not in view.owned for one in space.interfaces):
            return space
    return None


def is_certainly(one: Interface, claim: Claim) -> bool:
    """Whether an interface in a container is the claim's by its MAC address or alias; it may have been renamed."""
    return one.mac in claim.macs or one.alias.startswith(f"{claim.hex} ")


def is_perhaps(one: Interface, claim: Claim) -> bool:
    """The same by its name and an address."""
    return one.name == claim.ifname and not claim.addresses.isdisjoint(one.addresses)


def of_space(claim: Claim, space: Space, view: View) -> Verdict:
    """Of an attachment whose namespace exists."""
    if space.pids:
        return "alive", f"process {space.pids[0]} is in its network namespace"
    if space.descriptors:
        return "alive", f"{space.descriptors[0]} keeps its network namespace open"
    if space.unseen:
        return "alive", f"its network namespace exists, with the {space.key} of `ip netns list-id`"
    where = plain(space.mounts[0]) if space.mounts else space.key
    owner = denied(claim, view.answers)
    if owner:
        return "dead", f"{owner} has no such container, and no process is in {where}"
    return "alive", f"its network namespace exists: {where}"


def plain(path: str) -> str:
    """The path of a mount without the way to it by a process: /run/netns/web of /proc/812/root/run/netns/web."""
    return re.sub(r"^/proc/\d+/root/", "/", path)


def of_none(claim: Claim, view: View) -> Verdict:
    """Of an attachment whose namespace was not found."""
    host = view.census.spaces[0].interfaces
    standing = next(leading(claim, host), None)
    if standing is not None:
        return "unknown", f"its interface {standing.name} on the host still leads to a namespace, which cannot be seen"
    if claim.cookie and (claim.host_links or claim.number >= 0):
        return of_number(claim, view)
    elsewhere = "" if claim.here else claim.stranger or view.census.shared
    if view.census.hidden or elsewhere:
        return "unknown", view.census.hidden or elsewhere
    if claim.cookie or claim.key:
        return ("dead", "its network namespace is gone") if claim.host_links else ("unknown", KEPT)
    if view.answers.silent:
        return "unknown", f"{', '.join(sorted(view.answers.silent))} does not answer, and may have the container"
    if claim.container_id in view.answers.known:
        return "unknown", "a runtime knows the container, and will disconnect it itself"
    return of_place(claim, view)


def of_number(claim: Claim, view: View) -> Verdict:
    """The same, where the record has an interface of the host, or the number by which the host knew the namespace."""
    holder = next((space for space in view.census.spaces if space.unseen and space.number == claim.number), None)
    if claim.host_links or holder is None:  # a namespace that was entered has another cookie
        return "dead", "its network namespace is gone"
    return "unknown", f"the namespace with the {holder.key} of `ip netns list-id` does not show its interface"


def leading(claim: Claim, host: tuple[Interface, ...]) -> Iterator[Interface]:
    """The interfaces of the host that are the attachment's, and whose other end is in another namespace."""
    for one in host:
        if one.abroad and (one.name in claim.host_links or one.alias.startswith(f"{claim.hex} ")):
            yield one


def of_place(claim: Claim, view: View) -> Verdict:
    """Of an attachment without a record that knows its namespace: what its path and its interface tell."""
    owner = denied(claim, view.answers)
    known = "MAC address" if claim.macs else "addresses" if claim.addresses else ""
    if claim.leads_to is None:
        return "unknown", f"{claim.netns} cannot be looked at"
    if owner and (claim.netns or known):
        return "dead", f"{owner} has no such container, and no namespace has its interface"
    if claim.leads_to == OTHER:
        return "unknown", f"{claim.netns} is a file, on which another host may have mounted the namespace"
    if claim.leads_to:
        return "unknown", f"{claim.netns} leads to a namespace that does not have its interface"
    if not known or (claim.whole and not claim.ours):
        return "unknown", KEPT if known else "nothing tells which network namespace it had"
    if claim.netns:
        return "dead", f"{claim.netns} is gone, and no namespace has its {known}"
    if claim.ours:
        return "dead", f"no namespace has its {known}"
    return "unknown", f"no namespace has its {known}, but nothing tells which namespace it had"


def denied(claim: Claim, answers: Answers) -> str:
    """The runtime that owns the container and says that it does not exist; "" if none does. All must have answered."""
    if answers.silent or claim.container_id in answers.known:
        return ""
    return next((name for name in owners(claim) if name in answers.answered), "")


def owners(claim: Claim) -> Iterator[str]:
    """The runtimes that make IDs and paths of this form."""
    for name, ids, paths in OWNERS:
        if re.fullmatch(ids, claim.container_id) and (not claim.netns or re.fullmatch(paths, claim.netns)):
            yield name
