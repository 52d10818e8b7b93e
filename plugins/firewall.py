"""firewall: what is forwarded to and from the container passes; bridges can be kept apart. Chained behind e.g. bridge.

    ADD    the plan: rules for the addresses of prevResult, and for its bridge -> result: prevResult
    DEL    undoes the record; rules that the Go plugin made for these addresses
    CHECK  the plan of ADD against the kernel
    GC     attachments of this network that the runtime no longer knows, with or without a record
    STATUS that the backend is there

What ADD makes, in this order:

    what is forwarded from and to the addresses passes      iptables/forward.py, firewalld/sources.py
    the bridge is kept apart from others                    by ingressPolicy
    its port is isolated from the bridge's other ports      by ingressPolicy isolated

Example configuration: conf/firewall.conflist.

    backend        firewalld    where firewalld runs, unless another one is named: the addresses are bound to a zone of it, since
                                no accept of ours overrules its reject; the rest is as with the host's other backend
                   nftables     the default else: elements of our table; iptables' FORWARD only where it drops by policy
                   iptables     the Go plugin's chains CNI-FORWARD, CNI-ADMIN, CNI-ISOLATION-STAGE-1 and -2
    ingressPolicy  open         the default
                   same-bridge  other bridges with a policy reach the container only by its published ports
                   isolated     so do containers of its own bridge, also without br_netfilter: no frame passes between ports
                   Both need a bridge in prevResult: behind ptp or macvlan they are refused (code 7). In a VLAN it is
                   that of the bridge's interface there (`br0.100`), since nothing is routed by the bridge itself
"""

from cni_py import version
from cni_py.attachment import records
from cni_py.attachment.call import Call, Plugin, collect_garbage
from cni_py.errors import InvalidNetworkConfig
from cni_py.files import system_bus
from cni_py.plugins import backends
from cni_py.plugins.firewall_conf import ADMIN_CHAIN, BACKENDS, FIREWALLD, TRUSTED, FirewallConf
from cni_py.protocol import netconf
from cni_py.protocol.result import known_result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.attachment.engine import Op
    from cni_py.protocol.result import Result


def add(call: Call) -> "Result":
    """Let the container's traffic pass."""
    conf = FirewallConf(call)
    earlier = needed_result(conf)
    conf.check_add(call.kernel)
    steps = plan(conf, conf.backend, by_firewalld=conf.by_firewalld)
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


def plan(conf: FirewallConf, backend: str, *, by_firewalld: bool) -> "list[Op]":
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
    if by_firewalld:
        from cni_py.firewalld.sources import BindSource

        hosts = [str(ip.address.host()) for ip in needed_result(conf).ips]
        steps += [BindSource(source=host, zone=conf.zone) for host in hosts]
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
    call.finish_delete(call.run_all(Call.undo_recorded, remove_foreign, forget_sources, forget_policies))


def remove_foreign(call: Call) -> None:
    """Without a record: delete the rules that the Go plugin made for the addresses of prevResult."""
    from cni_py.iptables.forward import forget_addresses
    from cni_py.nftables.policy import bridges_of

    earlier = known_result(call.conf)
    if earlier is not None and not call.is_recorded:
        forget_addresses(call.kernel, earlier, admin_chain_of(call), bridges_of(earlier))


def forget_sources(call: Call) -> None:
    """Without a record: release the addresses that the Go plugin, or an ADD of ours, has bound to firewalld's zone."""
    asked, zone = (netconf.string(call.conf.raw, key) for key in ("backend", "firewalldZone"))
    if call.is_recorded or asked in BACKENDS or not system_bus():
        return
    from cni_py.firewalld import sources
    from cni_py.ipam.leaving import known_addresses

    addresses = known_addresses(call)
    if addresses:
        sources.forget_sources(addresses, zone or TRUSTED, here=asked != FIREWALLD)


def admin_chain_of(call: Call) -> str:
    """The admin chain that an ADD will have used: the default where the configured one is no name of a chain."""
    from cni_py.kernel.xtables import is_chain_name

    name = netconf.string(call.conf.raw, "iptablesAdminChainName", ADMIN_CHAIN)
    return name if is_chain_name(name) else ADMIN_CHAIN


def forget_policies(call: Call) -> None:
    """Without a record: delete what keeps the container apart."""
    if call.is_recorded:
        return
    from cni_py.nftables.policy import bridges_of, forget_policies

    earlier = known_result(call.conf)
    forget_policies(call.kernel, bridges_of(earlier) if earlier is not None else [])


def check(call: Call) -> None:
    """Compare the plan of ADD with the kernel."""
    conf = FirewallConf(call)
    needed_result(conf)
    conf.check_add(call.kernel)
    from cni_py.iptables.forward import without_kept

    backend, by_firewalld = backend_in_use(call, conf)
    if by_firewalld and conf.asked == FIREWALLD:
        backends.require_firewalld()
    call.check_plan(without_kept(call.kernel, plan(conf, backend, by_firewalld=by_firewalld)))


def backend_in_use(call: Call, conf: FirewallConf) -> tuple[str, bool]:
    """The backend that ADD used, and whether firewalld; by the record, else as configured, which may have changed since."""
    record = records.load(call.key, call.plugin)
    ops = [fields for fields in record.ops if isinstance(fields, dict)] if record is not None else []
    backend, by_firewalld = "", any(fields.get("op") == "BindSource" for fields in ops)
    for fields in ops:
        if fields.get("op") == "PassForwarded":
            backend = "iptables" if fields.get("always") else "nftables"
    return backend or conf.backend, by_firewalld if ops else conf.by_firewalld


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
    conf.check_keys()
    backends.require(call.kernel, conf.backend)
    if conf.asked == FIREWALLD:
        backends.require(call.kernel, FIREWALLD)


PLUGIN = Plugin(
    "firewall", add=add, delete=delete, check=check, gc=gc, status=status, versions=version.spoken_by("firewall")
)
