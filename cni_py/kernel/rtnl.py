"""rtnetlink: the links and bridge ports of one network namespace. Addresses and routes: kernel/inet.py.

A method is one request: nothing here decides or retries. A delete that finds nothing returns False; every other refusal is
an OSError with the kernel's words.

Sources: rtnetlink(7), Linux include/uapi/linux/{rtnetlink,if_link,if_bridge,veth}.h, net/core/rtnetlink.c.
"""

import _signal
import _struct
import errno
import fcntl
import time

from cni_py.kernel.netlink import (
    NETLINK_ROUTE,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_ECHO,
    NLM_F_EXCL,
    Socket,
    attr,
    attrs,
    nested,
    number,
    text,
    u32,
)
from cni_py.kernel.netns import Enter
from cni_py.lean import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19  # rtnetlink.h
RTM_NEWNSID, RTM_GETNSID = 88, 90
RTGENMSG = bytes(4)  # struct rtgenmsg, padded
AF_BRIDGE = 7

IFNAME_MAX = 15  # bytes; IFNAMSIZ of if.h without the NUL
IFF_UP = 0x1
IFF_LOOPBACK = 0x8
IFF_PROMISC = 0x100
OPERSTATES = ("unknown", "notpresent", "down", "lowerlayerdown", "testing", "dormant", "up")  # IF_OPER_*, RFC 2863

IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK = 1, 3, 4, 5  # if_link.h
IFLA_MASTER, IFLA_PROTINFO, IFLA_TXQLEN, IFLA_OPERSTATE, IFLA_LINKINFO = 10, 12, 13, 16, 18
IFLA_IFALIAS, IFLA_AF_SPEC, IFLA_GROUP, IFLA_NET_NS_FD, IFLA_EXT_MASK, IFLA_LINK_NETNSID = 20, 26, 27, 28, 29, 37
IFLA_NUM_TX_QUEUES = 31
IFLA_PERM_ADDRESS, IFLA_PARENT_DEV_NAME, IFLA_PARENT_DEV_BUS_NAME = 54, 56, 57
IFLA_INFO_KIND, IFLA_INFO_DATA, IFLA_INFO_SLAVE_KIND, IFLA_INFO_SLAVE_DATA = 1, 2, 4, 5
IFLA_BR_VLAN_FILTERING = 7
IFLA_BRPORT_MODE, IFLA_BRPORT_ISOLATED = 4, 33  # MODE is hairpin
VETH_INFO_PEER = 1
NETNSA_NSID, NETNSA_FD = 1, 3  # net_namespace.h
NO_NSID = -1  # NETNSA_NSID_NOT_ASSIGNED
_RTEXT_FILTER_SKIP_STATS = 1 << 3

IFLA_BRIDGE_VLAN_INFO = 2  # if_bridge.h
VID_MAX = 4094  # IEEE 802.1Q
BRIDGE_VLAN_INFO_PVID, BRIDGE_VLAN_INFO_UNTAGGED = 1 << 1, 1 << 2
BRIDGE_VLAN_INFO_RANGE_BEGIN, BRIDGE_VLAN_INFO_RANGE_END = 1 << 3, 1 << 4

_IFINFOMSG = _struct.Struct("=BxHiII")  # family, hardware type, index, flags, mask of flags to change
_I32 = _struct.Struct("=i")
_IFREQ = _struct.Struct("@16xi20x")  # struct ifreq, net/if.h: the name, and a union
_SIOCGIFNAME = 0x8910  # linux/sockios.h
_VLAN_INFO = _struct.Struct("=HH")  # flags, VLAN ID

_UPPER_HALF = 1 << 31  # of the numbers of groups; those of people (/etc/iproute2/group) begin at 0
_GLANCE_S, _GLANCE_MAX_S = 0.004, 0.05  # between looks at a link that a child deletes
_CHILD_LIMIT_S = 10.0  # a child that gets at the lock of all links is through in milliseconds

_SLEEPS_S = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02)
_LONG_SLEEP_S = 0.05


class Link:
    """A network interface as the kernel showed it.

    `master` and `link` (of a veth: its peer) are indexes, 0 for none; `netns_id` says which namespace `link` is in, -1 for
    this one. `hairpin` and `isolated` are those of a bridge port, `data` are the attributes of its kind (IFLA_INFO_DATA).
    Of hardware: `permanent`, the MAC address that it was made with (Linux 5.6), and `parent`, where it is ("pci/0000:01:00.0",
    Linux 5.14).
    """

    __slots__ = (
        "alias", "data", "flags", "group", "hairpin", "index", "isolated", "kind", "link", "mac", "master", "mtu", "name",
        "netns_id", "operstate", "parent", "permanent", "slave_kind", "tx_queue", "vlan_filtering",
    )  # fmt: skip
    index: int
    flags: int

    def __init__(self, body: bytes) -> None:
        _, _, self.index, self.flags, _ = _IFINFOMSG.unpack_from(body)
        found = attrs(body[_IFINFOMSG.size :])
        info = attrs(found.get(IFLA_LINKINFO, b""))
        self.data, port = attrs(info.get(IFLA_INFO_DATA, b"")), attrs(info.get(IFLA_INFO_SLAVE_DATA, b""))
        self.name = text(found.get(IFLA_IFNAME))
        self.mac = found.get(IFLA_ADDRESS, b"")
        self.permanent = found.get(IFLA_PERM_ADDRESS, b"")
        bus, device = text(found.get(IFLA_PARENT_DEV_BUS_NAME)), text(found.get(IFLA_PARENT_DEV_NAME))
        self.parent = f"{bus}/{device}" if device else ""
        self.mtu = number(found.get(IFLA_MTU))
        self.tx_queue = number(found.get(IFLA_TXQLEN))
        self.operstate = OPERSTATES[number(found.get(IFLA_OPERSTATE))]
        self.master = number(found.get(IFLA_MASTER))
        self.link = number(found.get(IFLA_LINK))
        # The kernel gives a namespace its number when it first shows a link that leads there (rtnl_fill_link_netnsid()), and
        # shows -1 where the namespace is ending. The index is one of that namespace: here it would be another link's.
        self.netns_id = int(_I32.unpack(found[IFLA_LINK_NETNSID])[0]) if IFLA_LINK_NETNSID in found else -1
        if self.netns_id < 0 and IFLA_LINK_NETNSID in found:
            self.link = 0
        self.group = number(found.get(IFLA_GROUP))
        self.alias = text(found.get(IFLA_IFALIAS))
        self.kind = text(info.get(IFLA_INFO_KIND))
        self.slave_kind = text(info.get(IFLA_INFO_SLAVE_KIND))
        is_port = self.slave_kind == "bridge"
        self.hairpin = is_port and port.get(IFLA_BRPORT_MODE) == b"\1"
        self.isolated = is_port and port.get(IFLA_BRPORT_ISOLATED) == b"\1"
        self.vlan_filtering = self.kind == "bridge" and self.data.get(IFLA_BR_VLAN_FILTERING) == b"\1"

    @property
    def up(self) -> bool:
        """Whether it is set up. Whether it carries traffic as well is told by `operstate`."""
        return bool(self.flags & IFF_UP)


class Rtnl:
    """An rtnetlink socket in the network namespace of `netns_fd`, or in that of the process."""

    __slots__ = ("_cookie", "_indexes", "_socket", "hurried")

    def __init__(self, netns_fd: int | None = None, *, hurried: bool = False) -> None:
        self.hurried = hurried  # see delete_link()
        self._cookie = -1
        self._indexes: dict[str, int] = {}
        if netns_fd is None:
            self._socket = Socket(NETLINK_ROUTE)
        else:
            # A socket stays in the namespace it was made in (sock_net()), so one visit serves for all requests.
            with Enter(netns_fd):
                self._socket = Socket(NETLINK_ROUTE)

    def close(self) -> None:
        """A second call is harmless."""
        self._socket.close()

    def request(self, kind: int, flags: int, body: bytes) -> list[tuple[int, bytes]]:
        """One rtnetlink request, as netlink.Socket.request() says."""
        return self._socket.request(kind, flags, body)

    def delete(self, kind: int, body: bytes, absent: tuple[int, ...]) -> bool:
        """Send a request to delete. False when it fails with one of the errors `absent`: there was nothing to delete."""
        try:
            self.request(kind, 0, body)
        except OSError as error:
            if error.errno in absent:
                return False
            raise
        return True

    @property
    def cookie(self) -> int:
        """The kernel's number of the namespace, never used twice in one boot; 0 before Linux 5.14."""
        if self._cookie < 0:
            self._cookie = self._socket.netns_cookie()
        return self._cookie

    def nsid(self, netns_fd: int) -> int:
        """The number by which this namespace knows another one (kernel/nsid); NO_NSID if it has none. OSError."""
        return nsid_in(self.request(RTM_GETNSID, 0, RTGENMSG + attr(NETNSA_FD, u32(netns_fd)))[0][1])

    def give_nsid(self, netns_fd: int) -> int:
        """The same, given now if there is none. OSError.

        One message, of which the kernel tells the number as an echo. A second one where there is a number.
        """
        # NO_NSID: whichever number is free
        wanted = RTGENMSG + attr(NETNSA_NSID, _I32.pack(NO_NSID)) + attr(NETNSA_FD, u32(netns_fd))
        try:
            answers = self.request(RTM_NEWNSID, NLM_F_ECHO, wanted)
        except FileExistsError:
            answers = []
        return nsid_in(answers[0][1]) if answers else self.nsid(netns_fd)

    # Links

    def link(self, link: int | str) -> Link | None:
        """The link with this index or name (or alternative name); None when there is none, or no link can have the name."""
        try:
            index, name = _which(link)
            # Without the mask an answer has 200 bytes and more of counters, and reads those of every processor.
            body = ifinfomsg(index) + name + attr(IFLA_EXT_MASK, u32(_RTEXT_FILTER_SKIP_STATS))
            answers = self.request(RTM_GETLINK, 0, body)
        except OSError as error:
            if error.errno == errno.ENODEV or (error.errno == errno.EINVAL and isinstance(link, str)):
                return None
            raise
        return Link(answers[0][1])

    def index(self, name: str) -> int:
        """The index of the link called `name`, asked for once; 0: none. For a link that is only referred to.

        link() does not count: it is asked what there is before a call, which may go then. A link that goes later is ENODEV for
        whoever gives its index: those are not used again until 2,147,483,647 links have been made (dev_index_reserve()).
        """
        if name not in self._indexes and (found := self.link(name)) is not None:
            self._indexes[name] = found.index
        return self._indexes.get(name, 0)

    def links(self, master: int = 0) -> list[Link]:
        """All links, or the ports of one bridge: the kernel filters them (link_dump_filtered()).

        With strict checking an index or flags in the header of a dump are EINVAL (rtnl_valid_dump_ifinfo_req()).
        """
        body = ifinfomsg() + attr(IFLA_EXT_MASK, u32(_RTEXT_FILTER_SKIP_STATS))
        if master:
            body += attr(IFLA_MASTER, u32(master))
        return [Link(answer) for kind, answer in self.request(RTM_GETLINK, NLM_F_DUMP, body) if kind == RTM_NEWLINK]

    def add_link(
        self, kind: str, name: str, mac: bytes = b"", mtu: int = 0, *, data: bytes = b"", given: bytes = b""
    ) -> None:
        """A link of a kind, down. `mac` b"" and `mtu` 0 leave the kernel's choice.

        `data` are the attributes of its kind (IFLA_INFO_DATA), `given` further ones of the link. FileExistsError when the
        name is taken, EOPNOTSUPP when the kernel has no such kind.
        """
        body = ifinfomsg() + _described(name, mac, mtu) + given + linkinfo(kind, data)
        self.request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)

    def add_bridge(self, name: str, mac: bytes = b"", mtu: int = 0, *, vlan_filtering: bool = False) -> None:
        """FileExistsError when the name is taken."""
        self.add_link("bridge", name, mac, mtu, data=attr(IFLA_BR_VLAN_FILTERING, b"\1") if vlan_filtering else b"")

    def add_veth(
        self,
        name: str,
        peer: str,
        *,
        peer_netns_fd: int | None = None,
        mtu: int = 0,
        mac: bytes = b"",
        peer_mac: bytes = b"",
        alias: str = "",
    ) -> None:
        """A pair, both ends down: `name` here, `peer` in the namespace of `peer_netns_fd` (None: here), all in one request.

        FileExistsError when either name is taken. An alias (of `name`) takes a second request, since the kernel heeds none
        in the first (rtnl_create_link()); if that fails the pair is deleted again.
        """
        # With its namespace in the request the peer is made there: made here and moved, it would be renamed by udev, or
        # collide with a link of the same name.
        there = ifinfomsg() + _described(peer, peer_mac, mtu)
        if peer_netns_fd is not None:
            there += attr(IFLA_NET_NS_FD, u32(peer_netns_fd))
        self.add_link("veth", name, mac, mtu, data=attr(VETH_INFO_PEER, there))
        if alias:
            try:
                self.set_link(name, alias=alias)
            except BaseException:
                self.delete_link(name)
                raise

    def delete_link(self, link: int | str) -> bool:
        """Delete a link, a veth with its peer. False when there was none (`hurried`: perhaps True).

        The kernel does it in two parts. With the lock of all links held (some 4 ms) it takes the link from the tables, by
        name and index, tells everybody, and removes its sysctls and its folder of /sys (unregister_netdevice_many_notify()).
        Then, with the lock released, it holds the caller for an RCU grace period, 12 to 36 ms, until it may free the memory
        (rcu_barrier() in netdev_run_todo(), net/core/dev.c), and acknowledges the request last. Nobody else is held, and
        nobody can tell the difference. So where we are `hurried`, a child process makes the request, and we go on after the
        first part: see _delete_by_child(). It costs 2 ms of processor time. On a busy machine others use the time in which we
        wait, and a new process waits longer for a processor than the kernel would hold us.
        """
        self._indexes.clear()
        index, name = _which(link)
        if self.hurried and index and not _is_busy():
            deleted = self._delete_by_child(index)
            if deleted is not None:
                return deleted
        return self.delete(RTM_DELLINK, ifinfomsg(index) + name, (errno.ENODEV,))

    def _delete_by_child(self, index: int) -> bool | None:
        """delete_link() without the wait, for a process that soon ends. None: it is to be done with the wait.

        Since Linux 6.2 the kernel sends the notification of the deletion to who asks for an echo (rtnl_delete_link()); before,
        we look from time to time. A refusal comes to us like any other. The last look waits for the lock of all links
        (rtnl_getlink()), so the kernel is through with the first part, for a veth's peer as well, when there is no link.
        A child that was killed or stopped may have sent nothing: None.
        """
        try:
            pid, seq = self._socket.send_by_child(RTM_DELLINK, NLM_F_ECHO, ifinfomsg(index))
        except OSError:
            return None
        end, glance = time.monotonic() + _CHILD_LIMIT_S, _GLANCE_S
        try:
            while not self._socket.answered(seq, glance) and self._is_listed(index):
                if not _runs(pid) or time.monotonic() > end:
                    return None
                glance = min(2 * glance, _GLANCE_MAX_S)
        except OSError as error:
            if error.errno == errno.ENODEV:
                return False
            raise
        return True if self.link(index) is None else None

    def _is_listed(self, index: int) -> bool:
        """Whether there is a link with this index. Unlike link() it waits for no lock (dev_ifname())."""
        try:
            # netlink has no ioctls of its own, so those of links are tried (sock_do_ioctl()), in the socket's namespace.
            fcntl.ioctl(self._socket.fileno(), _SIOCGIFNAME, _IFREQ.pack(index))
        except OSError as error:
            return error.errno != errno.ENODEV
        return True

    def delete_links(self, indexes: "Sequence[int]") -> None:
        """Delete links together: a hundred in 50 ms, where they take 2 s one by one, each with a grace period (delete_link()).

        The kernel deletes what is in one group (rtnl_group_dellink()). Groups are numbers that anybody gives to any link, so
        ours is a random one of the upper half, in which there must be no other link. Where that cannot be done the links are
        deleted one by one. Those that are gone already are passed over.
        """
        self._indexes.clear()
        group = int.from_bytes(os.urandom(4), "big") | _UPPER_HALF
        present = set()
        try:
            for index in indexes if len(indexes) > 1 else ():
                if self._set_group(index, group):
                    present.add(index)
            if present and {link.index for link in self.links() if link.group == group} <= present:
                self.delete(RTM_DELLINK, ifinfomsg() + attr(IFLA_GROUP, u32(group)), (errno.ENODEV,))
                return
        except OSError:
            pass  # no group before Linux 2.6.39; one of the links cannot be deleted, and its own error is to be told
        for index in indexes:
            self.delete_link(index)

    def _set_group(self, index: int, group: int) -> bool:
        """Whether there is such a link."""
        try:
            self.request(RTM_SETLINK, 0, ifinfomsg(index) + attr(IFLA_GROUP, u32(group)))
        except OSError as error:
            if error.errno == errno.ENODEV:
                return False
            raise
        return True

    def set_link(  # noqa: PLR0913  what a link has
        self,
        link: int | str,
        *,
        up: bool | None = None,
        promisc: bool | None = None,
        mtu: int | None = None,
        mac: bytes | None = None,
        master: int | None = None,
        alias: str | None = None,
        netns_fd: int | None = None,
        name: str | None = None,
    ) -> None:
        """Change what is given, in one request. `master` 0 takes a port out of its bridge; a `name` needs the link's index.

        A link that moves is set down, and has its new name in the namespace of `netns_fd` alone, even if its old one is in use
        there (dev_change_net_namespace()). FileExistsError when both are.

        The kernel goes through the changes in an order of its own and keeps those that it has made when one is refused
        (do_setlink()): namespace, MAC, MTU, name, alias, flags, master.
        """
        if netns_fd is not None or name is not None:
            self._indexes.clear()
        index, which = _which(link)
        flags = change = 0
        for bit, wanted in ((IFF_UP, up), (IFF_PROMISC, promisc)):
            if wanted is not None:
                change |= bit
                flags |= bit if wanted else 0
        values = (
            (IFLA_MTU, None if mtu is None else u32(mtu)),
            (IFLA_ADDRESS, mac),
            (IFLA_MASTER, None if master is None else u32(master)),
            (IFLA_IFNAME, None if name is None else check_name(name) + b"\0"),
            (IFLA_IFALIAS, None if alias is None else os.fsencode(alias)),
            (IFLA_NET_NS_FD, None if netns_fd is None else u32(netns_fd)),
        )
        given = b"".join(attr(kind, value) for kind, value in values if value is not None)
        self.request(RTM_SETLINK, 0, ifinfomsg(index, flags=flags, change=change) + which + given)

    # Bridge ports

    def set_bridge_port(self, index: int, *, hairpin: bool | None = None, isolated: bool | None = None) -> None:
        """`hairpin`: frames may leave by the port they came from; `isolated`: no frames from one isolated port to another."""
        values = ((IFLA_BRPORT_MODE, hairpin), (IFLA_BRPORT_ISOLATED, isolated))
        given = [attr(kind, bytes([value])) for kind, value in values if value is not None]
        # IFLA_PROTINFO without NLA_F_NESTED is the one byte of the port's state (br_setlink()).
        body = ifinfomsg(index, family=AF_BRIDGE) + nested(IFLA_PROTINFO, *given)
        self.request(RTM_SETLINK, 0, body)

    def add_vlan(
        self, index: int, vid: int, last: int | None = None, *, pvid: bool = False, untagged: bool = False
    ) -> None:
        """Let the VLANs `vid` to `last` (both included) through a bridge port, and keep those that it has.

        The flags of a VLAN that it has are set anew, so one without `pvid` takes that away (__vlan_add_flags()).
        """
        flags = (BRIDGE_VLAN_INFO_PVID if pvid else 0) | (BRIDGE_VLAN_INFO_UNTAGGED if untagged else 0)
        self.request(RTM_SETLINK, 0, _vlan_body(index, flags, vid, last))

    def delete_vlan(self, index: int, vid: int, last: int | None = None) -> None:
        """Close a bridge port to the VLANs `vid` to `last`, or to all: 1 to VID_MAX. Those it does not carry are no error."""
        self.request(RTM_DELLINK, 0, _vlan_body(index, 0, vid, last))

    # Waiting

    def wait_up(self, link: int | str, limit_s: float) -> bool:
        """Wait until the link carries traffic (operstate up). False when it does not within the limit, or is gone.

        Both ends of a veth must be up; the state follows in a work queue (linkwatch_event()), some time after set_link().
        """

        def carries_traffic() -> bool | None:
            found = self.link(link)
            return None if found is None else found.operstate == "up"

        return wait(carries_traffic, limit_s)


def _is_busy() -> bool:
    """Whether there are more processes that could run now than processors for us (proc_loadavg(5)). We are one of them."""
    try:
        with open("/proc/loadavg", "rb", 0) as file:
            runnable = int(file.read(128).split()[3].partition(b"/")[0])
    except (OSError, ValueError, IndexError):
        return False
    return runnable > len(os.sched_getaffinity(0))


def _runs(child: int) -> bool:
    """Whether a child process of ours has not ended. One that was stopped is ended: it may have our stdout open."""
    try:
        ended, status = os.waitpid(child, os.WNOHANG | os.WUNTRACED)
        if ended and os.WIFSTOPPED(status):
            os.kill(child, _signal.SIGKILL)
    except OSError:  # ECHILD: we were started with SIGCHLD ignored, and the kernel has collected it
        return False
    return not ended


def wait(settled: "Callable[[], bool | None]", limit_s: float) -> bool:
    """Call `settled` at growing intervals. Whether it was true within the limit; None from it says that it never will be."""
    end = time.monotonic() + limit_s
    attempt = 0
    while not (answer := settled()):
        left = end - time.monotonic()
        if answer is None or left <= 0:
            return False
        time.sleep(min(left, _SLEEPS_S[attempt] if attempt < len(_SLEEPS_S) else _LONG_SLEEP_S))
        attempt += 1
    return True


def nsid_in(body: bytes) -> int:
    """The number in a message about a namespace's number."""
    return int(_I32.unpack(attrs(body[len(RTGENMSG) :])[NETNSA_NSID])[0])


def check_name(name: str) -> bytes:
    """The bytes of an interface name; OSError EINVAL when it cannot be one (dev_valid_name() in net/core/dev.c)."""
    raw = os.fsencode(name)
    bad = not 1 <= len(raw) <= IFNAME_MAX or name in (".", "..") or len(raw.split()) != 1 or raw != raw.strip()
    if bad or any(byte in b"/:%\0" for byte in raw):  # "veth%d" would be taken as a pattern
        raise OSError(errno.EINVAL, f"not an interface name: {name!r}")
    return raw


def name_attr(name: str) -> bytes:
    """The attribute that names an interface. OSError EINVAL when it cannot be a name."""
    return attr(IFLA_IFNAME, check_name(name) + b"\0")


def _which(link: int | str) -> tuple[int, bytes]:
    """An interface by index or name: the header's index and the attribute, one of them empty.

    Index 0 is refused: to the kernel it means that none is given.
    """
    if isinstance(link, str):
        return 0, name_attr(link)
    if link <= 0:
        raise OSError(errno.EINVAL, f"not an interface index: {link}")
    return link, b""


def ifinfomsg(index: int = 0, *, family: int = 0, flags: int = 0, change: int = 0) -> bytes:
    """struct ifinfomsg, the head of a message about a link: `change` is the mask of `flags` to set."""
    return _IFINFOMSG.pack(family, 0, index, flags, change)


def linkinfo(kind: str, data: bytes = b"") -> bytes:
    """IFLA_LINKINFO: the kind of a link ("veth") and the attributes of that kind."""
    given = nested(IFLA_INFO_DATA, data) if data else b""
    return nested(IFLA_LINKINFO, attr(IFLA_INFO_KIND, kind.encode() + b"\0"), given)


def has_kind(side: "Rtnl", kind: str) -> bool:
    """Whether the kernel has links of that kind. Asks with a request that always fails, so nothing changes."""
    # More queues than rtnl_create_link() allows; it looks after the kind. An unknown kind is EOPNOTSUPP.
    body = ifinfomsg() + attr(IFLA_NUM_TX_QUEUES, u32(0xFFFFFFFF)) + linkinfo(kind)
    try:
        side.request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)
    except OSError as error:
        return error.errno != errno.EOPNOTSUPP
    return True


def _described(name: str, mac: bytes, mtu: int) -> bytes:
    """Name, MAC address and MTU of a link that is to be made; b"" and 0 are left out."""
    given = name_attr(name)
    if mac:
        given += attr(IFLA_ADDRESS, mac)
    return given + attr(IFLA_MTU, u32(mtu)) if mtu else given


def _vlan_body(index: int, flags: int, vid: int, last: int | None) -> bytes:
    if not 1 <= vid <= (last or vid) <= VID_MAX:
        raise OSError(errno.ERANGE, f"not VLAN IDs: {vid} to {last or vid}")
    if last is None or last == vid:
        vlans = [_VLAN_INFO.pack(flags, vid)]
    else:
        vlans = [
            _VLAN_INFO.pack(flags | BRIDGE_VLAN_INFO_RANGE_BEGIN, vid),
            _VLAN_INFO.pack(flags | BRIDGE_VLAN_INFO_RANGE_END, last),
        ]
    header = ifinfomsg(index, family=AF_BRIDGE)
    return header + nested(IFLA_AF_SPEC, *(attr(IFLA_BRIDGE_VLAN_INFO, vlan) for vlan in vlans))
