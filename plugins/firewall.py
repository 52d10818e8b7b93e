"""firewall: what is forwarded to and from the container passes; bridges can be kept apart. Chained behind e.g. bridge.

    ADD    the plan: rules for the addresses of prevResult, and for its bridge -> result: prevResult
    DEL    undoes the record; rules that the Go plugin made for these addresses
    CHECK  the plan of ADD against the kernel
    GC     attachments of this network that the runtime no longer knows, with or without a record
    STATUS that the backend is there

What ADD makes, in this order:

    what is forwarded from and to the addresses passes      nftables/policy.py, iptables/forward.py
    the bridge is kept apart from others                    by ingressPolicy
    its port is isolated from the bridge's other ports      by ingressPolicy isolated

Example configuration: conf/firewall.conflist.

    backend        nftables     the default: elements of our table; iptables' FORWARD only where it drops by policy
                   iptables     the Go plugin's chains CNI-FORWARD, CNI-ADMIN, CNI-ISOLATION-STAGE-1 and -2
    ingressPolicy  open         the default
                   same-bridge  other bridges with a policy reach the container only by its published ports
                   isolated     so do containers of its own bridge, also without br_netfilter: no frame passes between ports
                   Both need a bridge in prevResult: behind ptp or macvlan they are refused (code 7)
"""

from cni_py import version
from cni_py.attachment import records
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
    """The keys of the configuration. InvalidNetworkConfig for a value of a wrong type, at every verb."""

    __slots__ = ("admin_chain", "asked", "policy", "prev_result")

    def __init__(self, call: Call) -> None:
        raw = call.conf.raw
        self.asked = netconf.string(raw, "backend")
        self.admin_chain = netconf.string(raw, "iptablesAdminChainName", ADMIN_CHAIN)
        self.policy = netconf.string(raw, "ingressPolicy")
        netconf.string(raw, "firewalldZone")  # read, so that one of a wrong type is refused
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
        """The bridge that the policy is for, "" when prevResult names none."""
        return "".join(self.host_side[:1])

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

    def refuse_firewalld(self) -> None:
        """UnsupportedField for the backend firewalld: its daemon owns the rules, and ours would be in its way."""
        if self.asked == "firewalld":
            raise UnsupportedField("backend: firewalld is not supported: use nftables or iptables")

    def check_add(self, kernel: "Kernel") -> None:
        """InvalidNetworkConfig or UnsupportedField for what only ADD and CHECK refuse."""
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
    earlier.form = None  # not passed on as it was read: the `version` of each address is to be that of its family
    return earlier


def needed_result(conf: FirewallConf) -> "Result":
    """prevResult. InvalidNetworkConfig where there is none."""
    if conf.prev_result is None:
        raise InvalidNetworkConfig("missing prevResult from earlier plugin: firewall must be chained behind another")
    return conf.prev_result


def plan(conf: FirewallConf, backend: str) -> "list[Op]":
    """The operations that let the container's traffic pass and keep others out; none without addresses and policy."""
    from cni_py.iptables.forward import PassForwarded

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
    if not policy:
        return steps
    from cni_py.nftables.policy import IsolatePort, KeepApart

    if not by_iptables:
        steps.append(KeepApart(bridge=conf.bridge, policy=policy))
    if policy == "isolated" and conf.port:
        steps.append(IsolatePort(name=conf.port))
    return steps


def delete(call: Call) -> None:
    """Delete the rules, whatever the configuration says by now."""
    call.finish_delete(call.run_all(Call.undo_recorded, remove_foreign, forget_policies))


def remove_foreign(call: Call) -> None:
    """Without a record: delete the rules that the Go plugin made for the addresses of prevResult."""
    from cni_py.iptables.forward import forget_addresses

    earlier = known_result(call.conf)
    if earlier is not None and not call.is_recorded:
        bridge = earlier.interfaces[0].name if earlier.interfaces else ""
        forget_addresses(call.kernel, earlier, admin_chain_of(call), bridge)


def admin_chain_of(call: Call) -> str:
    """The admin chain that an ADD will have used: the default where the configured one is no name of a chain."""
    from cni_py.kernel.xtables import is_chain_name

    name = netconf.string(call.conf.raw, "iptablesAdminChainName", ADMIN_CHAIN)
    return name if is_chain_name(name) else ADMIN_CHAIN


def forget_policies(call: Call) -> None:
    """Without a record: delete what keeps the container apart."""
    if call.is_recorded:
        return
    from cni_py.nftables.policy import forget_policies

    earlier = known_result(call.conf)
    host_side = [interface.name for interface in earlier.interfaces if not interface.sandbox] if earlier else []
    forget_policies(call.kernel, "".join(host_side[:1]))


def check(call: Call) -> None:
    """Compare the plan of ADD with the kernel."""
    conf = FirewallConf(call)
    needed_result(conf)
    conf.check_add(call.kernel)
    from cni_py.iptables.forward import without_kept

    call.check_plan(without_kept(call.kernel, plan(conf, backend_in_use(call, conf))))


def backend_in_use(call: Call, conf: FirewallConf) -> str:
    """The backend that ADD used, from the record; else the configured one, which may have changed since."""
    record = records.load(call.key, call.plugin)
    for fields in record.ops if record is not None else ():
        if isinstance(fields, dict) and fields.get("op") == "PassForwarded":
            return "iptables" if fields.get("always") else "nftables"
    return conf.backend


def gc(call: Call) -> None:
    """Undo stale attachments: by their records, then what lost records leave behind."""
    call.finish_delete(collect_garbage(call) + call.run_all(sweep_ports, sweep_policies))


def sweep_policies(call: Call) -> None:
    """Delete the policies of bridges that no attachment needs any more."""
    from cni_py.nftables.policy import leave_stale

    leave_stale(call.kernel, call.stale_marks())


def sweep_ports(call: Call) -> None:
    """Delete the nftables elements of stale attachments whose record is lost."""
    valid = call.valid_attachments
    if valid is None:
        return
    from cni_py.kernel.nf_tables import BRIDGE
    from cni_py.nftables import elements
    from cni_py.nftables.policy import ISOLATED

    elements.sweep(call.kernel, call.conf.name, valid, (ISOLATED, BRIDGE))


def status(call: Call) -> None:
    """Whether an ADD can be served now."""
    conf = FirewallConf(call)
    conf.refuse_firewalld()
    backends.require(call.kernel, conf.backend)


PLUGIN = Plugin(
    "firewall", add=add, delete=delete, check=check, gc=gc, status=status, versions=version.spoken_by("firewall")
)
