"""bandwidth: limits what a container receives and sends. Chained behind a plugin that made a veth pair.

    ADD    the plan -> result: prevResult, with the ifb device if there is one
    DEL    undoes the record; an ifb device of the Go plugin, or of ours whose record is lost
    CHECK  the plan of ADD against the kernel
    GC     attachments of this network that the runtime no longer knows, with or without a record
    STATUS that the kernel has tbf and ifb

What ADD makes, all of it on the host, in this order (interface/shaping.py says why):

    ingress     a token bucket (qdisc tbf) on the host's end of the veth pair
    egress      an ifb device, up, with a token bucket; a redirect to it of all that comes in by the host's end

With `unshapedSubnets` or `shapedSubnets` two classes (qdisc htb) and filters take the place of each token bucket.

The ifb has the Go plugin's name, made of network and containerID. A second interface of the container in the same network
would have the same, so its ifb is called by the attachment. Example configuration: conf/bandwidth.conflist.
"""

from cni_py import version
from cni_py.addr import mac_text
from cni_py.attachment import records
from cni_py.attachment.call import Call, Plugin, collect_garbage
from cni_py.errors import CniError, InvalidNetworkConfig, PluginNotAvailable
from cni_py.plugins.bandwidth_conf import BandwidthConf
from cni_py.protocol.result import Interface, known_result, prev_result
from cni_py.sha import sha512_hex

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.attachment.engine import Op
    from cni_py.kernel.rtnl import Link
    from cni_py.protocol.result import Result

IFB_PREFIX = "bwp"
MTU = 1500  # in a dry run, where the veth is not there to ask


def add(call: Call) -> "Result":
    """Limit the container."""
    conf = BandwidthConf(call.conf)
    earlier = needed_result(call, "as chained plugin")
    if conf.ingress is None and conf.egress is None:
        return earlier
    conf.check()
    name, mtu = host_end(call, earlier)
    call.begin()
    refuse_existing(call, name)
    ifb = free_ifb_name(call)
    call.apply(plan(call, conf, name, mtu, ifb))
    if conf.egress is not None:
        earlier.interfaces.append(Interface(ifb, mac_text(call.key.mac("ifb"))))
    return earlier


def needed_result(call: Call, how: str) -> "Result":
    """prevResult. InvalidNetworkConfig where there is none; `how` is worded as the Go plugin's verb has it."""
    earlier = prev_result(call.conf)
    if earlier is None:
        raise InvalidNetworkConfig(
            f"bandwidth must be called {how}: it needs the result of a plugin before it (prevResult)"
        )
    return earlier


def plan(call: Call, conf: BandwidthConf, name: str, mtu: int, ifb: str) -> "list[Op]":
    """The operations that limit the container, in order. `name` and `mtu` are the host's end's."""
    from cni_py.interface import shaping

    steps: list[Op] = []
    if conf.ingress is not None:
        rate, burst = conf.ingress
        steps += of_networks(conf, name, conf.ingress) or [shaping.LimitRate(name=name, rate=rate, burst=burst)]
    if conf.egress is not None:
        rate, burst = conf.egress
        steps.append(shaping.AddIfb(name=ifb, mac=call.key.mac("ifb"), mtu=mtu))
        steps += of_networks(conf, ifb, conf.egress, is_ifb=True) or [
            shaping.LimitIfb(name=ifb, rate=rate, burst=burst)
        ]
        steps.append(shaping.RedirectToIfb(name=name, ifb=ifb))
    return steps


def of_networks(conf: BandwidthConf, name: str, limit: tuple[int, int], *, is_ifb: bool = False) -> "list[Op]":
    """The limit on an interface for some networks, or for all but some; none where it is for everybody."""
    if not conf.networks:
        return []
    from cni_py.interface.network_limits import LimitIfbNetworks, LimitNetworks

    kind = LimitIfbNetworks if is_ifb else LimitNetworks
    rate, burst = limit
    exempt = bool(conf.unshaped)
    return [kind(name=name, rate=rate, burst=burst, networks=conf.networks, exempt=exempt, source=not is_ifb)]


def host_end(call: Call, earlier: "Result") -> tuple[str, int]:
    """Name and MTU (bytes) of the host's end of the container's veth. CniError unless prevResult names it."""
    listed = [interface.name for interface in earlier.interfaces if not interface.sandbox]
    inside = call.kernel.container.link(call.ifname)
    if inside is None and call.dry_run and listed:
        return listed[-1], MTU  # the plugin before has not made it, since this is a dry run
    no_peer = f"container interface {call.ifname} has no veth peer"
    if inside is None:
        raise CniError(no_peer, f"{call.ifname} is not there in the container")
    if inside.kind != "veth":
        raise CniError(no_peer, f"{call.ifname} is no veth")
    outside = call.kernel.host.link(inside.link) if inside.link else None
    if outside is None or not is_pair(inside, outside) or outside.name not in listed:
        raise CniError(
            "no veth peer of container interface found in host ns: none that the plugin before names is the other end of "
            f"{call.ifname}"
        )
    return outside.name, outside.mtu


def refuse_existing(call: Call, name: str) -> None:
    """CniError where the host's end has a limit: somebody else's, or that of an ADD that succeeded."""
    from cni_py.kernel import tc

    side, link = call.kernel.host, call.kernel.host.link(name)
    if link is None:
        return
    if tc.root_kind(side, link.index) in ("tbf", "htb") or tc.has_ingress(side, link.index):
        raise CniError(f"the rate of {name} is limited already", "it has a qdisc tbf 1: or htb 1:, or an ingress")


def is_pair(inside: "Link", outside: "Link") -> bool:
    """Whether a link of the host with the index of the peer is the peer. The peer may be in a third namespace, where indexes
    are numbered anew: then the host's link of that index is another one.
    """
    return outside.kind == "veth" and outside.link == inside.index


def shared_ifb_name(call: Call) -> str:
    """The Go plugin's name of the ifb, the same for all interfaces of a container in one network."""
    return IFB_PREFIX + sha512_hex(call.conf.name + call.container_id)[:12]


def own_ifb_name(call: Call) -> str:
    """The name of the ifb of a second interface: this attachment's alone."""
    return IFB_PREFIX + call.key.hex[:12]


def free_ifb_name(call: Call) -> str:
    """The shared name, unless another interface of the container has it."""
    link = call.kernel.host.link(shared_ifb_name(call))
    return shared_ifb_name(call) if link is None or link.alias.startswith(call.key.hex) else own_ifb_name(call)


def delete(call: Call) -> None:
    """Withdraw the limits, whatever the configuration now says."""
    recorded = records.load(call.key, call.plugin) is not None
    call.finish_delete(call.run_all(Call.undo_recorded, lambda call: delete_ifbs(call, recorded)))


def delete_ifbs(call: Call, recorded: bool) -> None:
    """Delete an ifb of ours whose record is lost, and the Go plugin's, unless prevResult says that this interface has none."""
    if not any(map(call.kernel.host.link, (own_ifb_name(call), shared_ifb_name(call)))):
        return
    from cni_py.interface.shaping import delete_ifb

    delete_ifb(call.kernel, own_ifb_name(call), nameless=True)
    name = shared_ifb_name(call)
    earlier = known_result(call.conf)
    theirs = earlier is None or any(interface.name == name for interface in earlier.interfaces)
    delete_ifb(call.kernel, name, nameless=theirs and not recorded)


def check(call: Call) -> None:
    """Compare the plan of ADD with the kernel."""
    conf = BandwidthConf(call.conf)
    earlier = needed_result(call, "as a chained plugin")
    if conf.ingress is None and conf.egress is None:
        return
    conf.check()
    name, mtu = host_end(call, earlier)
    own = own_ifb_name(call)
    has_own = any(interface.name == own for interface in earlier.interfaces)
    call.check_plan(plan(call, conf, name, mtu, own if has_own else shared_ifb_name(call)))


def gc(call: Call) -> None:
    """Undo stale attachments: by their records, then the ifb devices of lost records."""
    call.finish_delete(collect_garbage(call) + call.run_all(sweep_ifbs))


def sweep_ifbs(call: Call) -> None:
    """Delete the ifb devices of stale attachments, which their alias names."""
    if call.conf.valid_attachments is None:
        return
    is_stale = call.stale_marks()
    ifbs = [link for link in call.kernel.host.links() if link.kind == "ifb" and link.name.startswith(IFB_PREFIX)]
    call.kernel.host.delete_links([link.index for link in ifbs if is_stale(link.alias)])


def status(call: Call) -> None:
    """Whether an ADD can be served now."""
    from cni_py.kernel import tc

    conf = BandwidthConf(call.conf)
    conf.check()
    lacking = tc.lacking(call.kernel.host)
    if not lacking and conf.networks:
        from cni_py.kernel import htb

        lacking = "htb (CONFIG_NET_SCH_HTB)" if htb.is_lacking(call.kernel.host) else ""
    if lacking:
        raise PluginNotAvailable("this kernel cannot limit the rate of a container's traffic", f"it lacks {lacking}")


PLUGIN = Plugin(
    "bandwidth",
    add=add,
    delete=delete,
    check=check,
    gc=gc,
    status=status,
    versions=version.spoken_by("bandwidth"),
)
