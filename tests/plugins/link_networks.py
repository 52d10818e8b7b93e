"""The networks of plugins that make no bridge, as bridge_network has them for bridge."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from tests.plugins.bridge_network import NOTHING, BridgeNetwork, Conf

if TYPE_CHECKING:
    from lab import Lab
    from runtime import Plugins

CLIENT = {4: "198.51.100.7", 6: "2001:db8:1::7"}


class PtpNetwork(BridgeNetwork):
    """Pairs of links in place of a bridge."""

    plugin = "ptp"
    beyond = MappingProxyType({"ipMasq": True})

    def routes(self, node: str, family: int, *words: str) -> list[str]:
        """ip route of a node, one text each, without the kernel's own."""
        shown = self.lab[node].run(["ip", f"-{family}", "route", "show", *words], check=True).stdout
        lines = [line.replace(" metric 1024", "").replace(" pref medium", "") for line in shown.splitlines()]
        return [line.strip() for line in lines if "fe80" not in line and "multicast" not in line]


class MacvlanNetwork(BridgeNetwork):
    """On the host's interface lan0; four addresses of the LAN are this network's, the first of them .2 to the tests."""

    plugin = "macvlan"
    families = (4,)  # IPv6 waits for duplicate address detection
    beyond = MappingProxyType({})

    def __init__(self, lab: Lab, plugins: Plugins) -> None:
        super().__init__(lab, plugins)
        self.subnets = {4: "198.51.100.0/24", 6: "2001:db8:1::/64"}
        self.first = 18 + 4 * (self.number % 57)

    def conf(
        self,
        version: str = "1.0.0",
        families: tuple[int, ...] = (4,),
        ipam: Mapping[str, Any] = NOTHING,
        **keys: object,
    ) -> Conf:
        conf = super().conf(version, families, ipam, **keys)
        for (pool,), family in zip(conf["ipam"].get("ranges", []), families, strict=False):
            ends = {"rangeStart": self.address(family, 2), "rangeEnd": self.address(family, 5)}
            pool.update(ends, gateway=self.gateway(family))
        return {"master": "lan0", **conf}

    def address(self, family: int, host: int) -> str:
        return f"198.51.100.{self.first + host}" if family == 4 else f"2001:db8:1::{self.number:x}:{host:x}"

    def gateway(self, family: int) -> str:
        return CLIENT[family]

    def state(self) -> dict[str, object]:
        """The same but for the master's count of who wants all frames: every macvlan of the LAN is in it, also one of a test
        before whose namespace the kernel has yet to end.
        """
        found: dict[str, Any] = super().state()
        for node in found.values():
            for link in node["links"].values():
                del link["promiscuity"]
        return found


class IpvlanNetwork(MacvlanNetwork):
    """The same, with the master's MAC address."""

    plugin = "ipvlan"


class VlanNetwork(BridgeNetwork):
    """A VLAN of its own on the host's interface lan0, in which nobody else is."""

    plugin = "vlan"
    families = (4,)  # IPv6 waits for duplicate address detection
    beyond = MappingProxyType({})

    def conf(self, *arguments: Any, **keys: Any) -> Conf:
        return {"master": "lan0", "vlanId": 1 + self.number % 4094, **super().conf(*arguments, **keys)}


class DummyNetwork(BridgeNetwork):
    """Addresses on an interface that leads nowhere."""

    plugin = "dummy"
    families = (4,)
    beyond = MappingProxyType({})


class HostDeviceNetwork(BridgeNetwork):
    """A device of the host, up and with an address: one end of a pair whose other end stays."""

    plugin = "host-device"
    families = (4,)
    beyond = MappingProxyType({})

    def __init__(self, lab: Lab, plugins: Plugins) -> None:
        super().__init__(lab, plugins)
        self.device, self.peer = f"card{self.number}", f"port{self.number}"
        self.mac = f"02:00:00:00:{self.number // 256:02x}:{self.number % 256:02x}"
        self.had = f"192.0.2.{1 + self.number % 250}/32"
        self.do("host", f"ip link add {self.device} address {self.mac} type veth peer name {self.peer}")
        self.do("host", f"ip link set {self.peer} up")
        self.do("host", f"ip link set {self.device} up alias uplink")
        self.do("host", f"ip address add {self.had} dev {self.device}")

    def close(self) -> None:
        self.lab["host"].run(["ip", "link", "delete", self.peer])
        super().close()

    def conf(self, *arguments: Any, **keys: Any) -> Conf:
        return {"device": self.device, **super().conf(*arguments, **keys)}
