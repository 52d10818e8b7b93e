"""portmap: ports of the host lead to the container. Chained behind the plugin that gave the container its addresses.

    ADD    the mappings of runtimeConfig.portMappings become elements of the nftables table cni_py; result: prevResult
    DEL    what the record lists: needs neither portMappings nor prevResult
    CHECK  the plan of ADD against the kernel
    GC     attachments of this network that the runtime no longer knows, with or without a record
    STATUS whether the backend is there: nf_tables and what makes the table, or iptables; with userlandProxy: always, portfwd

Example configuration: conf/portmap.conflist. A port that another container holds is an error (code 110), see ports/conflicts.

With `backend: iptables` they become the Go plugin's chains in iptables' nat table instead, which DEL and GC remove with either
backend. Keys beyond the reference's:

    userlandProxy   auto     portfwd, if it runs, serves what NAT cannot: [::1], link-local clients, IPv6 clients of a container
                             without IPv6 (and the reverse); what it cannot have is said on stderr. Not SCTP, no shared port,
                             no family with conditions
                    always   portfwd serves all, and nf_tables is not touched: for a host without NAT, or where its firewall (ufw,
                             firewalld) is to decide about published ports, which are local input then: see docs/backends.md
                    never    NAT alone
    randomHostPort  refuse   a mapping with hostPort 0 is an error, as with the reference
                    sticky   it gets a random port, the same one when the pod or container comes again: see ports/random_ports
    ports           {"8080/tcp": {"share": true, "allow": ["192.0.2.0/24"]}}, also as a pod's annotation: see ports/options
    podHostPorts    ["9000-9999"]: host ports that a pod may have by its annotation cni-py/host-ports, see ports/pod_ports
    hostListener    warn     a port that a program of the host listens on is published, which is said on stderr: its clients
                             come to the container
                    refuse   it is an error (code 110) that names the program; also for the host, in config.yaml: see settings
    directAccess    block    other networks reach the container through its published ports alone, not by its address
                    allow    as the reference
"""

from cni_py import backend
from cni_py.addr import Address
from cni_py.attachment.call import Call, Plugin, collect_garbage
from cni_py.errors import CniError, InvalidNetworkConfig, warn
from cni_py.ports import chains
from cni_py.ports.config import PortmapConf
from cni_py.ports.mapping import container_addresses, is_served, mappings
from cni_py.protocol import netconf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.attachment.engine import Op
    from cni_py.ports.mapping import Mapping
    from cni_py.protocol.result import Result


def add(call: Call) -> "Result":
    """Publish the ports: configuration, mappings and operations (plan), and what holds the ports already.

    The operations themselves claim the ports: see ports/__init__.
    """
    from cni_py.ports.plan import plan

    conf = PortmapConf(call.conf)
    if conf.prev_result is None:
        raise InvalidNetworkConfig(
            "portmap must be called as chained plugin: it needs the result of a plugin before it (prevResult)"
        )
    chosen: list[Op] = []
    if conf.has_random:
        from cni_py.ports import random_ports

        chosen = random_ports.choose(call, conf)
        conf.prev_result.port_mappings = random_ports.told(conf)
    steps = beside_listeners(call, conf, chosen + plan(conf, conf.prev_result, call.ifname))
    addresses = container_addresses(conf.prev_result, call.ifname)
    call.hand_out([address.packed for address in addresses])
    warn_of_unserved(conf, addresses)
    if not steps:
        from cni_py.plugins import backends

        backends.take_out_unrecorded(call, addresses)
    else:
        call.begin()
        call.apply(steps)
    return conf.prev_result


def beside_listeners(call: Call, conf: PortmapConf, steps: "list[Op]") -> "list[Op]":
    """The steps, after `hostListener` was applied to programs of the host that listen on one of the ports. PortInUse."""
    asked = backend.for_host_listener(netconf.string(call.conf.raw, "hostListener"))
    earlier = conf.prev_result
    if earlier is None or not conf.entries:
        return steps
    addresses = container_addresses(earlier, call.ifname)
    if conf.userland_proxy == "always":  # portfwd listens in both families, whichever the container has
        addresses = addresses and [Address(bytes(4), 32), Address(bytes(16), 128)]
    from cni_py.kernel import sock_diag

    wanted = mappings(conf, addresses)
    listeners = sock_diag.waiting((one.protocol, one.first, one.last) for one in wanted)
    if not listeners:
        return steps
    from cni_py.ports import host_listeners

    own = host_listeners.Container(call.container_id, call.netns, [ip.address.packed for ip in earlier.ips])
    return host_listeners.settle(wanted, listeners, own, asked, steps)


def warn_of_unserved(conf: PortmapConf, addresses: list[Address]) -> None:
    """Name on stderr the ports that NAT cannot serve, and that portfwd is not asked for or cannot serve either."""
    for entry in conf.entries:
        never = conf.userland_proxy == "never" or entry.protocol.lower() == "sctp"
        if never and addresses and not is_served(entry, addresses):
            what = f"{entry.numbers}/{entry.protocol.lower()} on {entry.host_ip}"
            warn(f"not published, since NAT alone cannot serve it: host port {what}")


def delete(call: Call) -> None:
    """Withdraw the ports, whatever the configuration now says, and what the interface had under other names of the network."""
    call.finish_delete(call.run_all(withdraw, chains.forget_ports, Call.withdraw_ports))


def withdraw(call: Call) -> None:
    """Undo what the record lists; of one that is lost or damaged, what the kernel and portfwd say."""
    call.undo_recorded()
    if not call.is_recorded:
        from cni_py.ipam.leaving import known_addresses
        from cni_py.ports import leftovers

        leftovers.withdraw_lost(call, known_addresses(call), certain=call.record is not None)


def check(call: Call) -> None:
    """Compare with the kernel."""
    from cni_py.iptables import names
    from cni_py.plugins import backends
    from cni_py.ports.plan import plan

    conf = PortmapConf(call.conf)
    if conf.prev_result is None:
        raise InvalidNetworkConfig("Required prevResult missing")
    ops = {"PublishPorts": "nftables", "PublishByIptables": "iptables"}
    conf.asked_backend = backends.serving(call, conf.asked_backend, names.PUBLISH, ops)
    if conf.has_random:
        from cni_py.ports import random_ports

        random_ports.recorded(call, conf)
    if conf.asked_backend != "iptables" and (made := chains.of_go_tables(call)):
        check_made_by_go(conf, container_addresses(conf.prev_result, call.ifname), made)
        return
    call.check_plan(plan(conf, conf.prev_result, call.ifname))


def check_made_by_go(conf: PortmapConf, addresses: list[Address], made: "list[Mapping]") -> None:
    """Compare with the rules of newer Go plugins. CniError."""
    ports = [port for one in mappings(conf, addresses) for port in one.apart()]
    lost = [str(port) for port in ports if port not in made]
    if lost:
        raise CniError("a published port is lost: the Go plugins' nftables rules do not have it", ", ".join(lost))


def gc(call: Call) -> None:
    """Take away what stale attachments left."""
    from cni_py.plugins import backends

    call.finish_delete(collect_garbage(call) + call.run_all(sweep_elements, backends.sweep_ports, sweep_chains))


def sweep_chains(call: Call) -> None:
    """Take out the chains of subnets and conditions that no container uses any more."""
    from cni_py.nftables import elements

    elements.sweep_chains(call.kernel)


def sweep_elements(call: Call) -> None:
    """Take out our nftables elements, and portfwd's mappings, of stale attachments whose record is lost."""
    from cni_py.kernel.nf_tables import INET
    from cni_py.nftables import elements
    from cni_py.ports import index, relay, successors

    valid = call.valid_attachments
    if valid is not None:
        successors.sweep_ports(call.kernel, call.conf.name, valid)
        elements.sweep(call.kernel, call.conf.name, valid, ("guarded4", INET), ("guarded6", INET))
        relay.sweep(call.conf.name, valid)
        index.sweep(call.conf.name, valid)


def status(call: Call) -> None:
    """Whether an ADD can be served now."""
    if netconf.string(call.conf.raw, "userlandProxy") == "always":
        from cni_py.ports import relay

        relay.require()
    else:
        from cni_py.plugins import backends

        backends.require(call.kernel, backend.chosen(PortmapConf(call.conf).asked_backend))


PLUGIN = Plugin("portmap", add=add, delete=delete, check=check, gc=gc, status=status)
