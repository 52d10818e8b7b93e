"""firewall's configuration."""

from cni_py.attachment.call import Call
from cni_py.backend import chosen
from cni_py.errors import InvalidNetworkConfig
from cni_py.files import system_bus
from cni_py.protocol import netconf
from cni_py.protocol.result import prev_result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.attachment.context import Kernel
    from cni_py.protocol.result import Result

BACKENDS = ("iptables", "nftables")
FIREWALLD = "firewalld"
ADMIN_CHAIN = "CNI-ADMIN"
TRUSTED = "trusted"  # firewalld's zone that accepts everything


class FirewallConf:
    """The keys of the configuration. InvalidNetworkConfig for a value of a wrong type, at every verb."""

    __slots__ = ("admin_chain", "asked", "policy", "prev_result", "zone")

    def __init__(self, call: Call) -> None:
        raw = call.conf.raw
        self.asked = netconf.string(raw, "backend")
        self.admin_chain = netconf.string(raw, "iptablesAdminChainName", ADMIN_CHAIN)
        self.policy = netconf.string(raw, "ingressPolicy")
        self.zone = netconf.string(raw, "firewalldZone") or TRUSTED
        self.prev_result: Result | None = prev_result(call.conf)

    @property
    def backend(self) -> str:
        """The backend to use. A name that is none counts as not given, as with the Go plugin."""
        return chosen(self.asked if self.asked in BACKENDS else "")

    @property
    def host_side(self) -> list[str]:
        """The host's interfaces in prevResult. The bridge plugin names its bridge first, then the port."""
        interfaces = self.prev_result.interfaces if self.prev_result is not None else []
        return [interface.name for interface in interfaces if not interface.sandbox]

    @property
    def bridge(self) -> str:
        """The bridge that the policy is for, "" when prevResult names none; in a VLAN its interface there."""
        from cni_py.nftables.policy import routed_by

        return routed_by(self.host_side)

    @property
    def port(self) -> str:
        """The bridge's port that leads to the container, "" when prevResult names none."""
        return "".join(self.host_side[1:2])

    @property
    def has_policy(self) -> bool:
        """Whether bridges are to be kept apart. InvalidNetworkConfig for an unknown policy."""
        if self.policy not in ("", "open", "same-bridge", "isolated"):
            raise InvalidNetworkConfig(
                f'unknown ingress policy: "{self.policy}" (ingressPolicy is open, same-bridge or isolated)'
            )
        return self.policy in ("same-bridge", "isolated")

    @property
    def may_be_firewalld(self) -> bool:
        """Whether firewalld may serve the container: it is named, or nothing is and there is a bus on which it could be."""
        return self.asked == FIREWALLD or (self.asked not in BACKENDS and bool(system_bus()))

    @property
    def by_firewalld(self) -> bool:
        """Whether firewalld is to serve the container. A named one need not run: ADD fails then. InvalidNetworkConfig."""
        if not self.may_be_firewalld:
            return False
        from cni_py.firewalld import zones

        zones.check_zone(self.zone)
        return self.asked == FIREWALLD or zones.serves()

    def check_keys(self) -> None:
        """InvalidNetworkConfig for a key with which no ADD can succeed."""
        from cni_py.kernel.xtables import is_chain_name

        if not is_chain_name(self.admin_chain):
            raise InvalidNetworkConfig(f'not the name of a chain: iptablesAdminChainName "{self.admin_chain}"')
        _ = self.has_policy

    def check_add(self, kernel: "Kernel") -> None:
        """InvalidNetworkConfig for what only ADD and CHECK refuse."""
        self.check_keys()
        if self.has_policy:
            from cni_py.nftables.policy import refuse_without_bridge

            refuse_without_bridge(kernel, self.policy, self.host_side)
