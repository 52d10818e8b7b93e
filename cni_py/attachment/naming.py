"""An attachment, and what is named after it: records, comments, aliases, MAC addresses."""

import os

from cni_py import files
from cni_py.sha import sha256

COMMENT_MAX = 128  # NFTNL_UDATA_COMMENT_MAXLEN, libnftnl; also far below IFALIASZ (256, linux/if.h)


class Attachment:
    """One interface of one container in one network, and every name derived from it."""

    __slots__ = ("container_id", "hex", "ifname", "network")

    def __init__(self, network: str, container_id: str, ifname: str) -> None:
        self.network = network
        self.container_id = container_id
        self.ifname = ifname
        self.hex: str = sha256(os.fsencode(f"{network}\0{container_id}\0{ifname}")).hexdigest()[:16]

    @property
    def label(self) -> str:
        """network/containerID/ifname, for people."""
        return f"{self.network}/{self.container_id}/{self.ifname}"

    @property
    def comment(self) -> str:
        """What every object of ours in the kernel carries; code matches the 16 hex digits alone."""
        text = f"{self.hex} {self.label}".encode("utf-8", "replace")  # an interface name need not be UTF-8
        return text[:COMMENT_MAX].decode("utf-8", "ignore")

    @property
    def host_veth(self) -> str:
        """The name of the host's end of the pair."""
        return "veth" + self.hex[:8]

    @property
    def folder(self) -> str:
        """Where the records of this attachment are."""
        return f"{files.run_dir()}/attachments/{self.hex}"

    def mac(self, end: str) -> bytes:
        """A locally administered MAC for one end ("host", "container").

        The same each time on one host, until its boot, so that a plan and the ADD after it agree; different on every host,
        so that two hosts on one segment do not collide.
        """
        return derived_mac(f"{self.hex}/{end}")


def derived_mac(seed: str) -> bytes:
    """02:xx:xx:xx:xx:xx from `seed`, this boot of this kernel, and the network namespace we run in.

    Several hosts may run on one kernel (kind, LXC, containerlab): no two network namespaces have one inode at the same time.
    """
    digest: bytes = sha256(f"{boot_id()}/{os.stat('/proc/self/ns/net').st_ino}/{seed}".encode()).digest()
    return b"\x02" + digest[:5]


def boot_id() -> str:
    """The kernel's id of this boot (proc_sys_kernel(5), random/boot_id)."""
    with open("/proc/sys/kernel/random/boot_id", "rb") as file:
        return file.read().decode().strip()


def interface_name(key: Attachment) -> str:
    """What the index of published ports calls a container's interface, whatever the network is called."""
    digest: str = sha256(os.fsencode(f"{key.container_id}\0{key.ifname}")).hexdigest()
    return digest[:16]
