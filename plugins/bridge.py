"""bridge: a veth pair from the container to a bridge of the host, with addresses from IPAM.

    ADD    IPAM -> plan -> apply -> result [bridge, host veth, container]
    DEL    what the record lists, the container's interface, IPAM; what is gone already is success
    CHECK  IPAM, the result of ADD against the kernel, then the plan of ADD against the kernel
    GC     attachments of this network that the runtime no longer knows
    STATUS IPAM, and whether the bridge's name is free or a bridge's

Example configuration: conf/bridge.conflist. The bridge, its gateway address and forwarding are shared: made when missing,
never taken away.
"""

from cni_py import backend
from cni_py.addr import mac_text
from cni_py.attachment import delegate
from cni_py.attachment.call import Call, Plugin, collect_garbage
from cni_py.errors import CniError, PluginNotAvailable
from cni_py.kernel import rtnl
from cni_py.plugins import backends
from cni_py.plugins.bridge_conf import BridgeConf
from cni_py.plugins.bridge_plan import bridge_mac, complete, plan, plan_bridge
from cni_py.plugins.container import (
    collect_addresses,
    delete_interface,
    examine_ipam,
    forget_marked,
    prefer_own_dns,
    refuse_existing,
    release_addresses,
    sweep_elements,
    sweep_pairs,
)
from cni_py.protocol.netconf import boolean, string
from cni_py.protocol.result import Interface, Result


def add(call: Call) -> Result:
    """Connect the container."""
    conf = BridgeConf(call)
    conf.check_add()
    if conf.masquerade:
        conf.backend = backend.chosen(conf.backend)
    container_mac = conf.container_mac(call)
    refusal = f'container veth name ("{call.ifname}") peer provided ("{call.key.host_veth}") already exists'
    refuse_existing(call, refusal)
    examine_ipam(call)
    if call.begin() and conf.has_ipam:
        delegate.ipam(call, "DEL")
    call.apply(plan_bridge(conf))  # before IPAM: a bridge that cannot be should not cost an address
    result = Result()
    if conf.has_ipam:
        result = delegate.ipam_add(call)
        if not result.ips:
            raise CniError("IPAM plugin returned missing IP config: its result has no address")
    complete(result, conf)
    call.apply(plan(call.key, conf, result, container_mac))
    result.interfaces = [
        Interface(conf.bridge, mac_now(call, conf.bridge, bridge_mac(conf.bridge))),
        Interface(call.key.host_veth, mac_text(call.key.mac("host"))),
        Interface(call.ifname, mac_text(container_mac), call.netns),
    ]
    if conf.vlan and conf.gateway:
        from cni_py.interface.vlan_gateway import vlan_gateway_name

        name = vlan_gateway_name(conf.bridge, conf.vlan)
        result.interfaces.append(Interface(name, mac_now(call, name, bytes(6))))
    prefer_own_dns(call, result)
    return result


def delete(call: Call) -> None:
    """Disconnect the container, with whatever is still there to go by."""
    steps = (Call.undo_recorded, forget_marked, backends.forget_masquerading, delete_interface, release_addresses)
    call.finish_delete(call.run_all(*steps))


def check(call: Call) -> None:
    """Compare what ADD made with what is there."""
    from cni_py.plugins import bridge_check

    bridge_check.check(call)


def gc(call: Call) -> None:
    """Take away what stale attachments left, here and in IPAM."""
    call.finish_delete(
        collect_garbage(call)
        + call.run_all(sweep_elements, backends.sweep_masquerading, sweep_pairs, collect_addresses)
    )


def status(call: Call) -> None:
    """Whether an ADD can be served now."""
    if delegate.ipam_type(call):
        delegate.ipam(call, "STATUS")
    conf = call.conf.raw
    name = string(conf, "bridge", "cni0")
    link = call.kernel.host.link(name) if 0 < len(name) <= rtnl.IFNAME_MAX else None
    if link is not None and link.kind != "bridge":
        raise PluginNotAvailable(f'"{name}" already exists but is not a bridge', "rename it or the network's bridge")
    if boolean(conf, "ipMasq"):
        backends.require(call.kernel, backend.chosen(string(conf, "ipMasqBackend")))
    if boolean(conf, "macspoofchk"):
        backends.require(call.kernel, "nftables")


def mac_now(call: Call, name: str, planned: bytes) -> str:
    """The MAC of a shared link, which may be older than we are; `planned` when a dry run made none."""
    link = call.kernel.host.link(name)
    return mac_text(link.mac if link is not None else planned)


PLUGIN = Plugin("bridge", add=add, delete=delete, check=check, gc=gc, status=status)
