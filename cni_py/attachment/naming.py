"""An attachment, and the names made of it: of records, comments, links; its MAC addresses. The name of a VLAN's gateway."""

from cni_py import files
from cni_py.lean import os
from cni_py.protocol.netconf import IFNAME_MAX
from cni_py.sha import sha256

HEX = 16  # digits of the digest that stands for an attachment, in comments and names of files
COMMENT_MAX = 128  # bytes; NFTNL_UDATA_COMMENT_MAXLEN, libnftnl; also far below IFALIASZ (256, linux/if.h)


class Attachment:
    """One interface of one container in one network, and every name derived from it."""

    __slots__ = ("container_id", "hex", "ifname", "network")

    def __init__(self, network: str, container_id: str, ifname: str) -> None:
        self.network = network
        self.container_id = container_id
        self.ifname = ifname
        self.hex: str = sha256(os.fsencode(f"{network}\0{container_id}\0{ifname}")).hexdigest()[:HEX]

    @property
    def label(self) -> str:
        """network/containerID/ifname, for people."""
        return f"{self.network}/{self.container_id}/{self.ifname}"

    @property
    def comment(self) -> str:
        """The mark of our objects in the kernel: a link's alias, an element's comment. Code compares the hex digits only."""
        text = f"{self.hex} {self.label}".encode("utf-8", "replace")  # an interface name need not be UTF-8
        return text[:COMMENT_MAX].decode("utf-8", "ignore")

    @property
    def host_veth(self) -> str:
        """The name of the host's end of a veth pair."""
        return "veth" + self.hex[:8]

    @property
    def folder(self) -> str:
        """The folder of this attachment's records."""
        return f"{files.run_dir()}/attachments/{self.hex}"

    def mac(self, end: str) -> bytes:
        """A locally administered MAC for one end ("host", "container").

        It stays the same on one host until the next boot, so that an ADD does what its plan said. Another host has another
        one, so that two hosts on one segment do not collide.
        """
        return derived_mac(f"{self.hex}/{end}")


def derived_mac(seed: str) -> bytes:
    """02:xx:xx:xx:xx:xx from `seed`, this boot of this kernel, and the network namespace we run in.

    The namespace counts because several hosts can share a kernel, and so its boot id (kind, LXC, containerlab): two network
    namespaces never have one inode number at the same time.
    """
    digest: bytes = sha256(f"{boot_id()}/{os.stat('/proc/self/ns/net').st_ino}/{seed}".encode()).digest()
    return b"\x02" + digest[:5]


_known: list[str] = []


def boot_id() -> str:
    """The kernel's id of this boot (proc_sys_kernel(5), random/boot_id). Read once: a process ends with its boot."""
    if not _known:
        fd = os.open("/proc/sys/kernel/random/boot_id", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _known.append(os.read(fd, 64).decode().strip())
        finally:
            os.close(fd)
    return _known[0]


def interface_name(key: Attachment) -> str:
    """The name of a container's interface in the index of published ports; the network is not part of it."""
    digest: str = sha256(os.fsencode(f"{key.container_id}\0{key.ifname}")).hexdigest()
    return digest[:HEX]


def vlan_gateway_name(bridge: str, vlan: int) -> str:
    """The name of the host's interface in a VLAN of a bridge: the Go plugin's, `<bridge>.<vlan>`, if that is short enough."""
    return fitting_name(f"{bridge}.{vlan}", "vg", bridge, vlan)


def fitting_name(name: str, prefix: str, bridge: str, vlan: int) -> str:
    """`name`; where it is too long one with a hash of the bridge's name. (Cut off, two bridges could have the same.)"""
    if len(os.fsencode(name)) <= IFNAME_MAX:
        return name
    return f"{prefix}{sha256(os.fsencode(bridge)).hexdigest()[:8]}.{vlan}"


def is_vlan_gateway(name: str, bridge: str) -> bool:
    """Whether vlan_gateway_name() names an interface of that bridge so."""
    vlan = name.rpartition(".")[2]
    return (
        len(name) <= IFNAME_MAX and vlan.isascii() and vlan.isdigit() and vlan_gateway_name(bridge, int(vlan)) == name
    )
