"""host-device: the container gets a device of the host, with addresses from IPAM, or without.

    ADD    the device is moved and renamed, IPAM, then addresses, the device up, routes -> result [the device]
    DEL    IPAM; the device comes back under its name, as it was; without a record by its alias, which is its name on the host
    CHECK  IPAM, the result of ADD against the kernel, then the plan of ADD against the kernel
    STATUS IPAM; that the device is on the host, or in a container of this network
    GC     attachments of this network that the runtime no longer knows

A PCI device that a program has to itself (DPDK) has no link: it has only a result. Beyond the Go plugin: the device comes back as
it was, up and with its addresses; also when the ADD fails, CNI_NETNS is empty or gone, or its name is in use by then. Example
configuration: conf/host-device.conflist.
"""

from cni_py.addr import mac_text
from cni_py.attachment import delegate, records
from cni_py.attachment.call import Call, Plugin
from cni_py.attachment.context import NetnsGone
from cni_py.attachment.engine import listed
from cni_py.errors import CniError, PluginNotAvailable
from cni_py.interface.hostdevice import MoveDevice, described
from cni_py.plugins import child
from cni_py.plugins.container import (
    ask_ipam,
    check_interface,
    checked_result,
    detach,
    examine_ipam,
    in_result,
    ipam_result,
    ips_of,
    prefer_own_dns,
    refuse_existing,
    release_addresses,
)
from cni_py.plugins.device_conf import DeviceConf
from cni_py.protocol.result import Interface, Result, known_result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_py.kernel.rtnl import Link


def add(call: Call) -> Result:
    """Connect the container."""
    conf = DeviceConf(call)
    conf.verify()
    is_userspace = conf.is_userspace()
    if not is_userspace:
        refuse_existing(
            call, CniError(f'failed to move link: the container has an interface "{call.ifname}": file exists')
        )
    examine_ipam(call)
    if call.begin():  # brings the device back from an ADD that was killed
        release_addresses(call)
    mac = "" if is_userspace else move(call, conf)
    result = ipam_result(call)
    for ip in result.ips:
        ip.interface = 0
    if not is_userspace:
        call.apply(child.plan(call.ifname, result, None))
    result.interfaces = [Interface(call.ifname, mac, call.netns)]
    prefer_own_dns(call, result)
    return result


def move(call: Call, conf: DeviceConf) -> str:
    """Move the device; its MAC address. CniError where there is none."""
    host, kernel = call.kernel.host, call.kernel
    link, name = conf.find(host)
    op = described(host, link, name, call.ifname, call.netns, kernel.container_cookie)
    call.apply([op])  # before IPAM: a device that cannot be moved should not cost an address
    return mac_text(link.mac)


def delete(call: Call) -> None:
    """Disconnect the container. Each step is tried, whatever is left to go by."""
    detach(call, Call.undo_recorded, fetch_unrecorded)


def fetch_unrecorded(call: Call) -> None:
    """Without a record of ours: bring the device back by its alias, as after an ADD of the Go plugin. CniError, OSError."""
    if call.is_recorded or is_userspace(call):
        return
    try:
        link = call.kernel.container.link(call.ifname) if call.netns else None
    except NetnsGone:
        link = None
    if link is None:
        fetch_fallen(call)
        return
    if not link.alias:
        raise CniError(
            f'failed to find original ifname for "{call.ifname}" (alias is not set)',
            "without its name on the host the interface stays in the container",
        )
    op = by_alias(call, link)
    if op is not None:
        op.fetch(call.kernel, call.kernel.container, link)


def fetch_fallen(call: Call) -> None:
    """Give a device its name back that an ended namespace has left on the host. prevResult or the configuration knows it."""
    earlier = known_result(call.conf)
    macs = {one.mac.lower() for one in (earlier.interfaces if earlier else ()) if one.mac and one.name == call.ifname}
    device = call.conf.raw.get("device")
    for link in call.kernel.host.links() if macs or device else ():
        if link.up or link.alias in ("", link.name):
            continue
        op = by_alias(call, link) if mac_text(link.mac) in macs or link.alias == device else None
        if op is not None:
            op.put_right(call.kernel.host, link)


def by_alias(call: Call, link: "Link") -> MoveDevice | None:
    """The operation that made the link the container's, as far as the link tells. None: its alias is no name of an interface."""
    try:
        return MoveDevice(
            name=link.alias,
            ifname=call.ifname,
            netns=call.netns,
            cookie=0,
            index=link.index,
            kind=link.kind,
            mac=link.mac,
            permanent=link.permanent,
            parent=link.parent,
            alias="",
            up=False,
            bridge="",
            addresses=[],
            settings={},
        )
    except ValueError:
        return None


def is_userspace(call: Call) -> bool:
    """DEL: whether there is no link to bring back, as far as the configuration tells."""
    try:
        return DeviceConf(call).is_userspace()
    except CniError:
        return False


def check(call: Call) -> None:
    """Compare the kernel with what ADD made."""
    conf = DeviceConf(call)
    conf.verify()
    result = checked_result(call)
    if conf.is_userspace():
        return
    container = in_result(call, result)
    check_interface(call, container)
    result.ips = ips_of(result, container)
    moved = listed(records.load(call.key, call.plugin), MoveDevice)
    call.check_plan([*moved, *child.plan(call.ifname, result, None)])


def status(call: Call) -> None:
    """Whether an ADD can be served now. A device that only the runtime names (deviceID) is not known to a STATUS."""
    conf = DeviceConf(call)
    try:
        if conf.named():
            conf.verify()
            if not conf.is_userspace() and not any(in_use(call)):
                conf.find(call.kernel.host)
    except CniError as error:
        raise PluginNotAvailable(error.msg, error.details) from error
    if delegate.ipam_type(call):
        ask_ipam(call, "STATUS")


def in_use(call: Call) -> "Iterator[bool]":
    """For each attachment of this network: true. The network's device is there, and a container has it."""
    return (record.key.network == call.conf.name for record in records.all_records(call.plugin))


PLUGIN = Plugin("host-device", add=add, delete=delete, check=check, gc=child.gc, status=status)
