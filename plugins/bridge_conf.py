"""The configuration of the bridge plugin, parsed and checked before anything is done."""

from cni_py.addr import interface_mac
from cni_py.errors import InvalidNetworkConfig
from cni_py.protocol.gojson import Object
from cni_py.protocol.netconf import (
    boolean,
    check_ifname,
    child,
    integer,
    objects,
    optional_boolean,
    optional_integer,
    parse_cni_args,
    string,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.addr import Address
    from cni_py.attachment.call import Call

VLAN_MAX = 4094  # IEEE 802.1Q; 4095 is reserved


class BridgeConf:
    """What the plugin was asked for; defaults as the reference plugin has them."""

    __slots__ = (
        "backend",
        "bridge",
        "dad",
        "default_gateway",
        "disable_container_interface",
        "force_address",
        "gateway",
        "hairpin",
        "has_ipam",
        "isolated",
        "keep_default_vlan",
        "mac",
        "mac_spoof_check",
        "masquerade",
        "mtu",
        "net_conf",
        "promisc",
        "trunk",
        "vlan",
    )

    def __init__(self, call: "Call") -> None:
        raw = call.conf.raw
        self.bridge = string(raw, "bridge", "cni0")
        self.default_gateway = boolean(raw, "isDefaultGateway")
        self.gateway = boolean(raw, "isGateway") or self.default_gateway
        self.force_address = boolean(raw, "forceAddress")
        self.masquerade = boolean(raw, "ipMasq")
        self.backend = string(raw, "ipMasqBackend")
        self.mtu = max(0, integer(raw, "mtu"))
        self.hairpin = boolean(raw, "hairpinMode")
        self.promisc = boolean(raw, "promiscMode")
        self.vlan = integer(raw, "vlan")
        self.trunk = trunk_ranges(raw)
        self.keep_default_vlan = bool(optional_boolean(raw, "preserveDefaultVlan"))
        self.mac_spoof_check = boolean(raw, "macspoofchk")
        self.dad = boolean(raw, "enabledad")
        self.disable_container_interface = boolean(raw, "disableContainerInterface")
        self.isolated = boolean(raw, "portIsolation")
        self.has_ipam = call.conf.ipam is not None and string(call.conf.ipam, "type") != ""
        self.net_conf = call.conf
        self.mac = requested_mac(call)
        if not 0 <= self.vlan <= VLAN_MAX:
            raise InvalidNetworkConfig(f"invalid VLAN ID {self.vlan} (must be between 0 and 4094)")

    def check_add(self) -> None:
        """What only ADD refuses: a DEL must not fail over it."""
        check_ifname(self.bridge, "bridge")
        if self.disable_container_interface and self.has_ipam:
            raise InvalidNetworkConfig(
                "cannot use IPAM when disableContainerInterface is set: leave out one of the two"
            )
        if self.hairpin and self.promisc:
            raise InvalidNetworkConfig(
                "cannot set hairpinMode and promiscMode at the same time: leave out one of the two"
            )
        if self.masquerade and self.backend not in ("", "nftables", "iptables"):
            raise InvalidNetworkConfig(f'unknown ipmasq backend "{self.backend}": it is nftables or iptables')

    def range_gateways(self) -> "list[Address]":
        """The gateways of all ranges that host-local may choose from: each may be on the bridge for another container."""
        ipam = self.net_conf.ipam
        if ipam is None or string(ipam, "type") != "host-local":
            return []
        from cni_py.ipam.ranges import gateways

        return gateways(ipam, self.net_conf.runtime_config or Object())

    def container_mac(self, call: "Call") -> bytes:
        """The MAC asked for, or ours."""
        if not self.mac:
            return call.key.mac("container")
        try:
            return interface_mac(self.mac)
        except ValueError as error:
            raise InvalidNetworkConfig(
                f"{call.ifname} cannot have the MAC address that was asked for: {error}"
            ) from error


def requested_mac(call: "Call") -> str:
    """runtimeConfig.mac, else args.cni.mac, else MAC in CNI_ARGS."""
    wanted = parse_cni_args(call.args, ("MAC",)).get("MAC", "")
    cni = child(call.conf.args, "cni") if call.conf.args is not None else None
    for source in (cni, call.conf.runtime_config):
        if source is not None:
            wanted = string(source, "mac") or wanted
    return wanted


def trunk_ranges(raw: "Object") -> list[list[int]]:
    """vlanTrunk as pairs of first and last: [{"minID": 10, "maxID": 20}, {"id": 30}] is [[10, 20], [30, 30]]."""
    ranges = []
    for entry in objects(raw, "vlanTrunk"):
        first, last = _vlan_id(entry, "minID"), _vlan_id(entry, "maxID")
        single = _vlan_id(entry, "id")
        if (first is None) != (last is None):
            lacking = "minID" if first is None else "maxID"
            raise InvalidNetworkConfig(f"vlanTrunk: minID and maxID go together, {lacking} is missing")
        if first is not None and last is not None:
            if first > last:
                raise InvalidNetworkConfig(f"vlanTrunk: minID is greater than maxID ({first}, {last})")
            ranges.append([first, last])
        if single is not None:
            ranges.append([single, single])
    return ranges


def _vlan_id(entry: "Object", name: str) -> int | None:
    value = optional_integer(entry, name)
    if value is not None and not 1 <= value <= VLAN_MAX:
        raise InvalidNetworkConfig(f"vlanTrunk: {name} must be between 1 and {VLAN_MAX}, not {value}")
    return value
