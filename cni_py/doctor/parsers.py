"""What the plugins themselves refuse in a configuration: their own readers, called as an ADD would, without an effect.

Beside a schema, which knows types and limits, these know what several values mean together: subnets that overlap, an address
outside of its range, a condition that is no match.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cni_py import backend, run, skel, version
from cni_py.addr import interface_mac
from cni_py.attachment import delegate
from cni_py.attachment.call import Call
from cni_py.errors import CniError, InvalidNetworkConfig
from cni_py.firewalld.zones import check_zone
from cni_py.kernel.xtables import is_chain_name
from cni_py.plugins import backends, chain_conf, firewall_conf, ipvlan, macvlan, ptp, sbr, tap, vlan, vrf
from cni_py.plugins.bandwidth_conf import BandwidthConf
from cni_py.plugins.bridge_conf import BridgeConf
from cni_py.plugins.device_conf import DeviceConf
from cni_py.plugins.tuning_conf import TuningConf
from cni_py.ports import iptables_rules
from cni_py.ports.config import IPTABLES_FIRST, PortmapConf
from cni_py.protocol import conflist, netconf
from cni_py.protocol.conflist import Network
from cni_py.protocol.gojson import Object

IFNAME = "eth0"  # of the call that is imagined


@dataclass(frozen=True, slots=True)
class Refusal:
    """A plugin of a list, and what it refuses."""

    plugin: str  # "portmap", "host-local"
    error: CniError


def refusals(network: Network) -> Iterator[Refusal]:
    """What each plugin of ours in the list refuses, at most one for each: the plugin would stop there, too."""
    for plugin in network.plugins:
        found = list(_of_plugin(network, plugin))
        yield from found
        if not found and netconf.string(plugin, "type") == netconf.CHAIN:
            for member in conflist.unchained(plugin):
                yield from _of_plugin(network, member)


def _call(network: Network, plugin: Object) -> Call:
    conf = netconf.NetConf.parse(conflist.request(network, plugin, {}))
    return Call("ADD", conf.type, conf, container_id="doctor", ifname=IFNAME)


def _of_plugin(network: Network, plugin: Object) -> Iterator[Refusal]:
    kind = netconf.string(plugin, "type")
    if kind not in run.MODULES:
        return
    try:
        call = _call(network, plugin)
        skel.check_version("ADD", call.conf.cni_version, run.load(kind).versions or version.SUPPORTED)
        call.conf.check_common()
        netconf.string(call.conf.raw, "log")
        if kind in READERS:
            READERS[kind](call)
    except (CniError, OSError) as error:
        yield Refusal(kind, error if isinstance(error, CniError) else CniError(str(error)))
        return
    yield from _of_ipam(call)


def _of_ipam(call: Call) -> Iterator[Refusal]:
    ipam = call.conf.ipam or Object()
    kind = netconf.string(ipam, "type")
    if kind == "host-local" and _has_ranges_of_the_runtime(call, ipam):
        return
    examine = run.load(kind).examine if kind in run.MODULES else None
    try:
        if examine is not None:
            examine(call.delegated(kind))
    except (CniError, OSError) as error:
        yield Refusal(kind, error if isinstance(error, CniError) else CniError(str(error)))


def _has_ranges_of_the_runtime(call: Call, ipam: Object) -> bool:
    """Whether all ranges come with the ADD: as the capability ipRanges, which the plugin declares."""
    declared = netconf.boolean(netconf.child(call.conf.raw, "capabilities") or Object(), "ipRanges")
    return declared and not (netconf.string(ipam, "subnet") or netconf.values(ipam, "ranges"))


def _bridge(call: Call) -> None:
    conf = BridgeConf(call)
    conf.check_add()
    if conf.mac:
        _check_mac(conf.mac)


def _ptp(call: Call) -> None:
    conf = ptp.PtpConf(call)
    if conf.masquerade:
        backends.for_masquerading(conf.backend)


def _macvlan(call: Call) -> None:
    conf = macvlan.MacvlanConf(call)
    conf.check_mode()
    _check_mtu(conf.mtu)
    if conf.mac:
        _check_mac(conf.mac)


def _ipvlan(call: Call) -> None:
    conf = ipvlan.IpvlanConf(call)
    conf.check_mode()
    _check_mtu(conf.mtu)


def _vlan(call: Call) -> None:
    conf = vlan.VlanConf(call)
    conf.check()
    _check_mtu(conf.mtu)
    _check_ipam(call)


def _tap(call: Call) -> None:
    tap.TapConf(call)
    tap.requested_mac(call)
    tap.plan_port(call)


def _host_device(call: Call) -> None:
    conf = DeviceConf(call)
    capabilities = netconf.child(call.conf.raw, "capabilities") or Object()
    if not netconf.boolean(capabilities, "deviceID"):  # else the runtime may name it
        conf.verify()


def _sbr(call: Call) -> None:
    sbr.SbrConf(call).check_add()


def _vrf(call: Call) -> None:
    vrf.VrfConf(call).check()


def _check_ipam(call: Call) -> None:
    if not delegate.ipam_type(call):
        raise InvalidNetworkConfig(f"{call.plugin} needs addresses: an ipam")


def _check_mtu(mtu: int) -> None:
    if mtu < 0:
        raise InvalidNetworkConfig(f"invalid MTU {mtu}, must not be negative")


def _check_mac(text: str) -> None:
    try:
        interface_mac(text)
    except ValueError as error:
        raise InvalidNetworkConfig(str(error)) from error


def _portmap(call: Call) -> None:
    conf = PortmapConf(call.conf)
    backend.for_host_listener(netconf.string(call.conf.raw, "hostListener"))
    if conf.mark_chain and not is_chain_name(conf.mark_chain):
        raise InvalidNetworkConfig(f'not the name of a chain: externalSetMarkChain "{conf.mark_chain}"')
    for family, words in conf.words.items():
        if words and words[0].startswith(IPTABLES_FIRST):  # those of nft are checked already
            iptables_rules.vetted(words, f"conditionsV{family}")


def _firewall(call: Call) -> None:
    conf = firewall_conf.FirewallConf(call)
    check_zone(conf.zone)
    if not is_chain_name(conf.admin_chain):
        raise InvalidNetworkConfig(f'not the name of a chain: iptablesAdminChainName "{conf.admin_chain}"')
    _ = conf.has_policy


def _chain(call: Call) -> None:
    members = netconf.objects(call.conf.raw, "plugins")
    if not members:
        raise InvalidNetworkConfig(f'{netconf.CHAIN} needs "plugins": a list of plugins, as in a *.conflist')
    for switch in ("disableCheck", "disableGC"):
        netconf.boolean(call.conf.raw, switch)
    for member in members:
        chain_conf.check_type(netconf.string(member, "type"))
        chain_conf.check_capabilities(call, member)


def _tuning(call: Call) -> None:
    conf = TuningConf(call)
    conf.check_add()
    _ = conf.sysctl_paths, conf.settings


def _bandwidth(call: Call) -> None:
    BandwidthConf(call.conf).check()


READERS: dict[str, Callable[[Call], None]] = {
    "bandwidth": _bandwidth,
    "bridge": _bridge,
    "chain": _chain,
    "dummy": _check_ipam,
    "firewall": _firewall,
    "host-device": _host_device,
    "ipvlan": _ipvlan,
    "macvlan": _macvlan,
    "portmap": _portmap,
    "ptp": _ptp,
    "sbr": _sbr,
    "tap": _tap,
    "tuning": _tuning,
    "vlan": _vlan,
    "vrf": _vrf,
}
