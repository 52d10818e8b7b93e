"""firewall: what is forwarded to and from the container passes; bridges can be kept apart. Chained behind e.g. bridge.

    ADD    rules for the addresses of prevResult, and for the bridge among its interfaces; result: prevResult
    DEL    what the record lists, and rules that the Go plugin made for these addresses
    CHECK  the plan of ADD against the kernel
    GC     attachments of this network that the runtime no longer knows, with or without a record
    STATUS whether the backend is there

Example configuration: conf/firewall.conflist.

    backend        nftables     the default: elements of our table; iptables' FORWARD only where it drops by policy
                   iptables     the Go plugin's chains CNI-FORWARD, CNI-ADMIN, CNI-ISOLATION-STAGE-1 and -2
    ingressPolicy  open         the default
                   same-bridge  not reached from other bridges with a policy, but by published ports
                   isolated     nor from its own bridge, also without br_netfilter: no frame of any type passes between the ports
                   Both need a bridge in prevResult: behind ptp or macvlan they are refused (code 7)
"""

from cni_py import version
from cni_py.attachment import naming, records
from cni_py.attachment.call import Call, Plugin, collect_garbage
from cni_py.backend import chosen
from cni_py.errors import InvalidNetworkConfig, UnsupportedField
from cni_py.plugins import backends
from cni_py.protocol import netconf
from cni_py.protocol.result import known_result, prev_result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.attachment.context import Kernel
    from cni_py.attachment.engine import Op
    from cni_py.protocol.result import Result

BACKENDS = ("iptables", "nftables")
ADMIN_CHAIN = "CNI-ADMIN"


class FirewallConf:
    """The configuration, checked as far as every verb must."""

    __slots__ = ("admin_chain", "asked", "policy", "prev_result")

    def __init__(self, call: Call) -> None:
        raw = call.conf.raw
        self.asked = netconf.string(raw, "backend")
        self.admin_chain = netconf.string(raw, "iptablesAdminChainName", ADMIN_CHAIN)
        self.policy = netconf.string(raw, "ingressPolicy")
        netconf.string(raw, "firewalldZone")
        self.prev_result: Result | None = prev_result(call.conf)

    @property
    def backend(self) -> str:
        """The one to use; what is not a backend's name is passed over, as the Go plugin does."""
        return chosen(self.asked if self.asked in BACKENDS else "")

    @property
    def host_side(self) -> list[str]:
        """The host's interfaces that prevResult names: of the bridge plugin the bridge, then its port."""
        interfaces = self.prev_result.interfaces if self.prev_result is not None else []
        return [interface.name for interface in interfaces if not interface.sandbox]

    @property
    def bridge(self) -> str:
        """The bridge the policy is about, "" when prevResult names none."""
        return "".join(self.host_side[:1])

    @property
    def port(self) -> str:
        """The bridge's port that leads to the container, "" when prevResult names none."""
        return "".join(self.host_side[1:2])

    @property
    def has_policy(self) -> bool:
        """Whether bridges are to be kept apart. CniError for a policy that is none."""
        if self.policy not in ("", "open", "same-bridge", "isolated"):
            raise InvalidNetworkConfig(
                f'unknown ingress policy: "{self.policy}" (ingressPolicy is open, same-bridge or isolated)'
            )
        return self.policy in ("same-bridge", "isolated")

    def refuse_firewalld(self) -> None:
        """It has its own daemon and zones, and asking for it means that rules of ours would be in its way."""
        if self.asked == "firewalld":
            raise UnsupportedField("backend: firewalld is not supported: use nftables or iptables")

    def check_add(self, kernel: "Kernel") -> None:
        """CniError for what only ADD and CHECK refuse."""
        self.refuse_firewalld()
        from cni_py.kernel.xtables import is_chain_name

        if not is_chain_name(self.admin_chain):
            raise InvalidNetworkConfig(f'not the name of a chain: iptablesAdminChainName "{self.admin_chain}"')
        if self.has_policy:
            from cni_py.nftables.policy import refuse_without_bridge

            refuse_without_bridge(kernel, self.policy, self.host_side)


def add(call: Call) -> "Result":
    """Let the container's traffic pass."""
    conf = FirewallConf(call)
    earlier = needed_result(conf)
    conf.check_add(call.kernel)
    steps = plan(conf, conf.backend)
    if steps:
        call.begin()
        call.apply(steps)
    earlier.form = None  # each address is said to be of the family that it is of
    return earlier


def needed_result(conf: FirewallConf) -> "Result":
    """The result of the plugin before."""
    if conf.prev_result is None:
        raise InvalidNetworkConfig("missing prevResult from earlier plugin: firewall must be chained behind another")
    return conf.prev_result


def plan(conf: FirewallConf, backend: str) -> "list[Op]":
    """Everything that lets it pass, and keeps others out; nothing without addresses or policy."""
    from cni_py.iptables.forward import PassForwarded
    from cni_py.nftables.policy import IsolatePort, KeepApart

    by_iptables = backend == "iptables"
    policy = conf.policy if conf.has_policy else ""
    addresses = [str(ip.address) for ip in needed_result(conf).ips]
    steps: list[Op] = []
    if addresses:
        inside = (conf.bridge, policy) if by_iptables and policy else ("", "")
        steps.append(
            PassForwarded(
                addresses=addresses,
                admin_chain=conf.admin_chain,
                bridge=inside[0],
                policy=inside[1],
                always=by_iptables,
            )
        )
    if policy and not by_iptables:
        steps.append(KeepApart(bridge=conf.bridge, policy=policy))
    if policy == "isolated" and conf.port:
        steps.append(IsolatePort(name=conf.port))
    return steps


def delete(call: Call) -> None:
    """Take the rules out, whatever the configuration now says."""
    call.finish_delete(call.run_all(Call.undo_recorded, remove_foreign, forget_policies))


def remove_foreign(call: Call) -> None:
    """Without a record: take out what the Go plugin made for the addresses of prevResult."""
    from cni_py.iptables.forward import forget_addresses

    earlier = known_result(call.conf)
    if earlier is not None and not call.is_recorded:
        bridge = earlier.interfaces[0].name if earlier.interfaces else ""
        forget_addresses(call.kernel, earlier, admin_chain_of(call), bridge)


def admin_chain_of(call: Call) -> str:
    """The chain that an ADD will have used: the default where the configuration's is no chain's name."""
    from cni_py.kernel.xtables import is_chain_name

    name = netconf.string(call.conf.raw, "iptablesAdminChainName", ADMIN_CHAIN)
    return name if is_chain_name(name) else ADMIN_CHAIN


def forget_policies(call: Call) -> None:
    """Without a record: take out what keeps the container apart."""
    if call.is_recorded:
        return
    from cni_py.nftables.policy import forget_policies

    earlier = known_result(call.conf)
    host_side = [interface.name for interface in earlier.interfaces if not interface.sandbox] if earlier else []
    forget_policies(call.kernel, "".join(host_side[:1]))


def check(call: Call) -> None:
    """Compare with the kernel."""
    conf = FirewallConf(call)
    needed_result(conf)
    conf.check_add(call.kernel)
    from cni_py.iptables.forward import without_kept

    call.check_plan(without_kept(call.kernel, plan(conf, backend_in_use(call, conf))))


def backend_in_use(call: Call, conf: FirewallConf) -> str:
    """The backend that has served the attachment, also if the configuration has changed since, or the plugin."""
    record = records.load(call.key, call.plugin)
    for fields in record.ops if record is not None else ():
        if isinstance(fields, dict) and fields.get("op") == "PassForwarded":
            return "iptables" if fields.get("always") else "nftables"
    return conf.backend


def gc(call: Call) -> None:
    """Take away what stale attachments left."""
    call.finish_delete(collect_garbage(call) + call.run_all(sweep_ports, sweep_policies))


def sweep_policies(call: Call) -> None:
    """Take out the policies of bridges that nobody needs."""
    from cni_py.nftables.policy import leave_stale

    network, valid = call.conf.name, valid_hexes(call)

    def is_gone(alias: str) -> bool:
        hexed, _, label = alias.partition(" ")
        return valid is not None and label.startswith(f"{network}/") and hexed not in valid

    leave_stale(call.kernel, is_gone)


def valid_hexes(call: Call) -> set[str] | None:
    """The attachments that the runtime knows; None when it has not said."""
    listed = call.conf.valid_attachments
    return None if listed is None else {naming.Attachment(call.conf.name, *each).hex for each in listed}


def sweep_ports(call: Call) -> None:
    """Take out the elements of stale attachments whose record is lost."""
    if call.conf.valid_attachments is None:
        return
    from cni_py.kernel.nf_tables import BRIDGE
    from cni_py.nftables import elements
    from cni_py.nftables.policy import ISOLATED

    valid = [naming.Attachment(call.conf.name, *listed) for listed in call.conf.valid_attachments]
    elements.sweep(call.kernel, call.conf.name, valid, (ISOLATED, BRIDGE))


def status(call: Call) -> None:
    """Whether an ADD can be served now."""
    conf = FirewallConf(call)
    conf.refuse_firewalld()
    backends.require(call.kernel, conf.backend)


PLUGIN = Plugin(
    "firewall", add=add, delete=delete, check=check, gc=gc, status=status, versions=version.spoken_by("firewall")
)
