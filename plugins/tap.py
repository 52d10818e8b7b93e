"""tap: an interface of the container whose other end a program has, a virtual machine's; with addresses from IPAM, or without.

    STATUS IPAM; that there is a /dev/net/tun
    all others: plugins/child.py

Beyond the Go plugin: MAC and MTU are set in every case; an interface of that name that is there is an error and stays; IPAM's
DNS settings reach the result; `ip` is not needed; CHECK and GC. Duplicate addresses are not looked for: without a program at
its other end a tap carries nothing. Example configuration: conf/tap.conflist.
"""

from cni_py.attachment.call import Call, Plugin
from cni_py.errors import InvalidNetworkConfig, PluginNotAvailable, UnsupportedField
from cni_py.interface.tap import DEVICE, IDS, AddTap, JoinContainerBridge
from cni_py.lean import os
from cni_py.plugins import child
from cni_py.plugins.container import ask_ipam, container_mac
from cni_py.protocol.netconf import boolean, integer, parse_cni_args, string

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.attachment.engine import Op
    from cni_py.protocol.result import Result

SELINUX = "/sys/fs/selinux/enforce"


class TapConf:
    """The keys of the configuration; -1, 0 and "" where nothing is asked for."""

    __slots__ = ("group", "mtu", "multi_queue", "owner")

    def __init__(self, call: Call) -> None:
        """InvalidNetworkConfig for an owner, group or MTU that cannot be."""
        raw = call.conf.raw
        self.owner, self.group = (
            integer(raw, name) if raw.get(name) is not None else -1 for name in ("owner", "group")
        )
        for name, value in (("owner", self.owner), ("group", self.group)):
            if raw.get(name) is not None and not 0 <= value < IDS:
                raise InvalidNetworkConfig(f"{name} {value} is not between 0 and {IDS - 1}")
        self.mtu = integer(raw, "mtu")
        if self.mtu < 0:
            raise InvalidNetworkConfig(f"invalid MTU {self.mtu}")
        if string(raw, "selinuxContext") and os.path.exists(SELINUX):
            raise UnsupportedField("selinuxContext: taps with a label of SELinux's are not supported: leave it out")
        self.multi_queue = boolean(raw, "multiQueue")


def requested_mac(call: Call) -> bytes:
    """The runtime's, else the configuration's, else one of our own. InvalidNetworkConfig."""
    runtime = call.conf.runtime_config
    args = parse_cni_args(call.args, ("MAC",)).get("MAC", "")
    wanted = (string(runtime, "mac") if runtime is not None else "") or args or string(call.conf.raw, "mac")
    return container_mac(call, wanted)


def plan_link(call: Call) -> AddTap:
    """The operation that makes the interface. InvalidNetworkConfig for a MAC, owner, group or MTU that cannot be."""
    conf = TapConf(call)
    return AddTap(
        ifname=call.ifname,
        mtu=conf.mtu,
        mac=requested_mac(call),
        owner=conf.owner,
        group=conf.group,
        multi_queue=conf.multi_queue,
        netns=call.netns,
        cookie=call.kernel.container_cookie,
    )


def plan_port(call: Call) -> "list[Op]":
    """The operation that puts it into a bridge of the container, where one is named."""
    name = string(call.conf.raw, "bridge")
    return [JoinContainerBridge(ifname=call.ifname, bridge=name)] if name else []


def add(call: Call) -> "Result":
    """Connect the container."""
    return child.connect(call, plan_link(call), more=plan_port(call), dad=False)


def check(call: Call) -> None:
    """Compare the kernel with what ADD made."""
    child.compare(call, plan_link(call), more=plan_port(call), dad=False)


def status(call: Call) -> None:
    """Whether an ADD can be served now."""
    if not os.path.exists(DEVICE):
        raise PluginNotAvailable(
            f"there is no {DEVICE}", "load the module tun, or make the device known in this container"
        )
    ask_ipam(call, "STATUS")


PLUGIN = Plugin("tap", add=add, delete=child.delete, check=check, gc=child.gc, status=status)
