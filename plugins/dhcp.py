"""dhcp: an address that a DHCP server in the container's network leases. An IPAM plugin, and the daemon that keeps the leases.

    ADD     the daemon acquires a lease on the container's interface -> result [address, routes]
    DEL     the daemon releases it; success also where no daemon runs
    CHECK   the daemon holds the lease, and its address is that of prevResult
    GC      the daemon releases the leases of attachments of this network that are not in the list
    STATUS  code 50 unless a daemon answers

    dhcp daemon [-socketpath PATH] ...    runs the daemon (cni_py/dhcp); `dhcp daemon -help`

A lease is asked for from inside the container, so its interface must be there already: the plugins that make one call this one
after that, and for DEL before it goes. Either may be the Go plugins': plugin and daemon, or plugin and caller. Example
configuration: conf/dhcp.conflist.
"""

import posix
import sys

from cni_py.attachment.call import Call, Plugin
from cni_py.errors import CniError, InvalidNetworkConfig, PluginNotAvailable, warn
from cni_py.ipam import dhcp
from cni_py.ipam.dhcp_options import provided, requested
from cni_py.protocol.gojson import Object
from cni_py.protocol.netconf import integer
from cni_py.protocol.result import Result, known_result

U32_MAX = (1 << 32) - 1
# A process of its own: asyncio is nothing for a plugin's call.
START = "import sys; sys.path.append({home!r}); from cni_py.dhcp.daemon import main; sys.exit(main(sys.argv[1:]))"


def add(call: Call) -> Result:
    """Ask for a lease, and answer with it."""
    ipam = parse(call)
    if call.dry_run:
        raise CniError("what the DHCP server would answer cannot be told without asking it")
    call.apply([dhcp.HoldLease(socket=dhcp.socket_path(ipam), ifname=call.ifname)])
    result = dhcp.to_result(dhcp.call_for(call, "DHCP.Allocate"))
    call.hand_out([ip.address.packed for ip in result.ips])
    return result


def parse(call: Call) -> Object:
    """The object `ipam`, once all of it was read that the daemon reads. InvalidNetworkConfig."""
    ipam = call.conf.ipam
    if ipam is None:
        raise InvalidNetworkConfig("IPAM config missing 'ipam' key: the configuration needs an object \"ipam\"")
    provided(ipam, call.args)
    requested(ipam)
    if not 0 <= integer(ipam, "priority") <= U32_MAX:
        raise InvalidNetworkConfig(f"priority {integer(ipam, 'priority')} is not between 0 and {U32_MAX}")
    dhcp.socket_path(ipam)
    return ipam


def delete(call: Call) -> None:
    """Release the lease. Without a daemon nobody renews it, so it ends by itself; ours releases it when it starts again."""
    try:
        call.withdraw_ports()
    finally:
        try:
            dhcp.call_for(call, "DHCP.Release")
        except dhcp.NoDaemon as error:
            warn(f"no lease is released: {error.msg}")


def check(call: Call) -> None:
    """Compare the lease with prevResult. A Go daemon knows no Check: Allocate answers with the lease that it holds."""
    parse(call)
    try:
        found = dhcp.to_result(dhcp.call_for(call, "DHCP.Check"))
    except dhcp.UnknownMethod:
        found = dhcp.to_result(dhcp.call_for(call, "DHCP.Allocate"))
    earlier = known_result(call.conf)
    for ip in found.ips if earlier is not None else ():
        assert earlier is not None
        if ip.address not in [held.address for held in earlier.ips]:
            raise CniError(f"dhcp: the lease of {call.ifname} is for {ip.address}, which prevResult does not have")


def gc(call: Call) -> None:
    """Release what is stale. A Go daemon, or none, has nothing to release by."""
    if call.valid_attachments is None:
        return
    try:
        dhcp.call_for(call, "DHCP.Collect")
    except (dhcp.NoDaemon, dhcp.UnknownMethod):
        pass


def status(call: Call) -> None:
    """Whether the daemon answers. One of the Go plugins' does not know the method, which is an answer, too."""
    parse(call)
    try:
        dhcp.call_for(call, "DHCP.Status")
    except dhcp.UnknownMethod:
        pass
    except CniError as error:
        raise PluginNotAvailable(error.msg, error.details) from error


def start_daemon(arguments: list[str]) -> None:
    """Become the daemon. Does not return."""
    start = START.format(home=__file__.rsplit("/", 3)[0])
    posix.execv(sys.executable, [sys.executable, "-IS", "-c", start, *arguments])


PLUGIN = Plugin("dhcp", add=add, delete=delete, check=check, gc=gc, status=status, examine=parse)
