"""bridge: a veth pair from the container to a bridge of the host, with addresses from IPAM.

    ADD    the bridge, IPAM, then the plan -> result [bridge, host's end, container's end]
    DEL    undoes the record; the container's interface, IPAM; whatever is gone already is success
    CHECK  IPAM, the result of ADD against the kernel, then the plan of ADD against the kernel
    GC     attachments of this network that the runtime no longer knows
    STATUS IPAM; that the bridge's name is free or a bridge's; that nftables or iptables is there if it is needed

What ADD makes, in this order (bridge_plan.py):

    host        the bridge, up, with a MAC that it keeps            shared: made when missing, never taken away
                addresses reserved by IPAM
    both        the veth pair, the host's end a port of the bridge: hairpin, isolation, VLANs, check of source addresses
    container   sysctls and addresses, the interface up, routes
    host        the gateway's address on the bridge, forwarding     shared, too
                masquerading of the container's addresses
    container   once the port forwards: the addresses announced to the neighbours

Example configuration: conf/bridge.conflist.
"""

from cni_py import backend
from cni_py.addr import mac_text
from cni_py.attachment import delegate
from cni_py.attachment.call import Call, Plugin
from cni_py.attachment.naming import vlan_gateway_name
from cni_py.errors import PluginNotAvailable
from cni_py.plugins import backends
from cni_py.plugins.container import (
    ask_ipam,
    collect,
    container_mac,
    delete_interface,
    detach,
    examine_ipam,
    forget_marked,
    ipam_result,
    prefer_own_dns,
    refuse_existing_pair,
    release_addresses,
    sweep_elements,
    sweep_pairs,
)
from cni_py.protocol.result import Interface, Result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.plugins.bridge_conf import BridgeConf


def add(call: Call) -> Result:
    """Connect the container."""
    from cni_py.plugins.bridge_conf import BridgeConf
    from cni_py.plugins.bridge_plan import complete, plan_bridge, plan_port, plan_rest, plan_up

    conf = BridgeConf(call)
    conf.check_add()
    if conf.masquerade:
        conf.backend = backend.chosen(conf.backend)
    mac = container_mac(call, conf.mac)
    refuse_existing_pair(call)
    examine_ipam(call)
    if call.begin():
        release_addresses(call)
    call.apply(plan_bridge(conf))  # before IPAM: a bridge that cannot be made should not cost an address
    port = plan_port(call.key, conf, mac)
    if delegate.by_interface(call):
        call.apply([*port, *plan_up(call.key)])
        port = []
    result = ipam_result(call)
    complete(result, conf)
    call.apply(port + plan_rest(call.key, conf, result, mac))
    result.interfaces = interfaces(call, conf, mac)
    prefer_own_dns(call, result)
    return result


def interfaces(call: Call, conf: "BridgeConf", mac: bytes) -> list[Interface]:
    """The interfaces of the result: the bridge, the two ends, and the gateway's interface where it is in a VLAN."""
    from cni_py.plugins.bridge_plan import bridge_mac

    found = [
        Interface(conf.bridge, mac_now(call, conf.bridge, bridge_mac(conf.bridge))),
        Interface(call.key.host_veth, mac_text(call.key.mac("host"))),
        Interface(call.ifname, mac_text(mac), call.netns),
    ]
    if conf.vlan and conf.gateway:
        name = vlan_gateway_name(conf.bridge, conf.vlan)
        found.append(Interface(name, mac_now(call, name, bytes(6))))
    return found


def mac_now(call: Call, name: str, planned: bytes) -> str:
    """The MAC of a shared link, which may be older than this ADD; `planned` where a dry run has not made it."""
    link = call.kernel.host.link(name)
    return mac_text(link.mac if link is not None else planned)


def delete(call: Call) -> None:
    """Disconnect the container. Each step is tried, whatever is left to go by."""
    detach(call, Call.undo_recorded, forget_marked, backends.forget_masquerading, delete_interface)


def check(call: Call) -> None:
    """Compare what ADD made with what is there. The first difference is the error."""
    from cni_py.plugins import bridge_check

    bridge_check.check(call)


def gc(call: Call) -> None:
    """Undo stale attachments: first by their records, then what lost records leave behind, then in IPAM."""
    collect(call, sweep_elements, backends.sweep_masquerading, sweep_pairs)


def status(call: Call) -> None:
    """Whether an ADD can be served now."""
    from cni_py.plugins.bridge_conf import BridgeConf

    conf = BridgeConf(call)
    conf.check_add()
    ask_ipam(call, "STATUS")
    link = call.kernel.host.link(conf.bridge)
    if link is not None and link.kind != "bridge":
        what = f'"{conf.bridge}" already exists but is not a bridge'
        raise PluginNotAvailable(what, "rename it or the network's bridge")
    if conf.masquerade:
        backends.require(call.kernel, backend.chosen(conf.backend))
    if conf.mac_spoof_check:
        backends.require(call.kernel, "nftables")


PLUGIN = Plugin("bridge", add=add, delete=delete, check=check, gc=gc, status=status)
