"""Which operations publish the ports of a portmap configuration, in order. DEL undoes the same list, CHECK compares with it."""

from cni_py import backend
from cni_py.addr import Address, ip_text
from cni_py.errors import InvalidNetworkConfig
from cni_py.kernel import sysctl
from cni_py.ports import host_clients, index, publish
from cni_py.ports.config import PortmapConf
from cni_py.ports.mapping import container_addresses, mappings, relays

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.attachment.engine import Op
    from cni_py.protocol.result import Result


def plan(conf: PortmapConf, earlier: "Result", ifname: str) -> "list[Op]":
    """Everything that publishes the ports, in order; nothing when there are none."""
    addresses = container_addresses(earlier, ifname)
    guards: list[Op] = [publish.GuardAddress(address=ip_text(address.packed)) for address in addresses]
    steps = guards if conf.block_direct else []
    if conf.userland_proxy == "always":
        refuse_what_needs_nat(conf)
    else:
        steps += plan_nat(conf, addresses, earlier)
    if conf.userland_proxy != "never":
        from cni_py.ports.relay import relay

        steps += relay(relays(conf, addresses), required=conf.userland_proxy == "always")
    return listed(steps, addresses)


def listed(steps: "list[Op]", addresses: list[Address]) -> "list[Op]":
    """The steps, and before them the entry of the index by which they are found when the address goes to somebody else."""
    if not steps:
        return []
    return [index.ListPublication(addresses=[ip_text(address.packed) for address in addresses]), *steps]


def refuse_what_needs_nat(conf: PortmapConf) -> None:
    """InvalidNetworkConfig for what portfwd cannot do."""
    if any(conf.conditions.values()):
        raise InvalidNetworkConfig("userlandProxy: always does not go with conditionsV4 and conditionsV6")
    for entry in conf.entries:
        options = conf.options.get((entry.protocol.lower(), entry.host_port))
        if entry.protocol.lower() == "sctp" or (options is not None and options.share):
            what = f"host port {entry.host_port}/{entry.protocol.lower()}"
            raise InvalidNetworkConfig(f"userlandProxy: always cannot publish {what}", "SCTP and shared ports need NAT")


def plan_nat(conf: PortmapConf, addresses: list[Address], earlier: "Result") -> "list[Op]":
    """The part of the kernel."""
    if not conf.entries:
        return []
    if backend.chosen(conf.asked_backend) == "iptables":
        from cni_py.ports import by_iptables

        steps = by_iptables.publish(conf, addresses)
        loopback: type[host_clients.AllowLoopbackClients] = by_iptables.OpenLoopback
        return (plan_host_clients(addresses, earlier, loopback) if steps and conf.snat else []) + steps
    wanted = mappings(conf, addresses)
    if not wanted:
        return []
    families = {mapping.family for mapping in wanted}
    addresses = [address for address in addresses if address.family in families]
    steps = plan_host_clients(addresses, earlier, host_clients.AllowLoopbackClients) if conf.snat else []
    steps.append(
        publish.PublishPorts(
            ports=list(map(str, wanted)),
            addresses=list(map(str, addresses)),
            clients=("all" if conf.masq_all else "subnet") if conf.snat else "none",
            conditions4=conf.conditions.get(4, ""),
            conditions6=conf.conditions.get(6, ""),
        )
    )
    return steps


def plan_host_clients(
    addresses: list[Address], earlier: "Result", loopback: type[host_clients.AllowLoopbackClients]
) -> "list[Op]":
    """What lets processes of this host, and the container itself, reach the container through its published ports."""
    steps: list[Op] = [loopback(address=ip_text(address.packed)) for address in addresses if address.family == 4]
    if any(sysctl.bridged_packets_pass_ip_rules(address.family) for address in addresses):
        ours = [interface.name for interface in earlier.interfaces if not interface.sandbox]
        steps += [host_clients.ReflectToPort(name=name) for name in ours[1:2]]  # [bridge, host veth, ...]
    return steps
