"""What the Go plugins made, as traces.py wants it: iptables' chains, newer plugins' nftables tables, ifb devices; and results."""

from __future__ import annotations

import os
from functools import partial

from cni_py.addr import ip_text, mac_text
from cni_py.attachment.context import Kernel
from cni_py.attachment.naming import Attachment
from cni_py.commands.traces import LAST, Thing, Trace, Traces, address_in
from cni_py.errors import CniError
from cni_py.host.liveness import WHOLE
from cni_py.iptables.names import (
    ACCEPTED,
    ENTRIES,
    GO_CHECKS,
    GO_HOSTPORT,
    GO_HOSTPORTS,
    GO_MASQUERADE,
    MASQUERADE,
    NFPROTO_INET,
    POSTROUTING,
    PUBLISH,
    chain_name,
    concerned,
    has_chain,
)
from cni_py.kernel import netns
from cni_py.kernel.rtnl import Rtnl
from cni_py.kernel.xtables import NAT, NFPROTO
from cni_py.protocol import cache, conflist, netconf
from cni_py.protocol.cache import Entry
from cni_py.protocol.result import Result, from_json
from cni_py.run import MODULES
from cni_py.sha import sha512_hex

IFB_PREFIX = "bwp"  # of bandwidth's ifb devices
ADMIN_CHAIN = "CNI-ADMIN"  # of firewall, unless a configuration says otherwise


def of_cache(traces: Traces) -> None:
    """libcni's cache: what a runtime knows of its attachments, ours and the Go plugins'."""
    traces.forwarded = forwarded_words(traces.kernel)
    for entry in cache.everything():
        trace = traces.of(Attachment(*entry.key))
        trace.netns = trace.netns or entry.known_netns
        read_result(trace, entry)
        read_list(traces, trace, entry)
        what = f"libcni's cache entry {entry.path(cache.RESULTS_DIR).name}"
        trace.things.append(Thing(what, partial(cache.remove, entry), LAST, ours=False))


def read_result(trace: Trace, entry: Entry) -> None:
    """What a cached result tells of the attachment: its interface in the container, its addresses, its end on the host."""
    for link in netconf.objects(entry.result, "interfaces") if entry.result is not None else ():
        name, mac = netconf.string(link, "name"), netconf.string(link, "mac").lower()
        if netconf.string(link, "sandbox"):
            trace.macs |= {mac} if name == entry.ifname and mac else set()
        elif name.startswith("veth"):
            trace.host_links.append(name)
    result = result_of(entry)
    if result is not None:
        trace.addresses |= {ip_text(ip.address.packed) for ip in result.ips}


def result_of(entry: Entry) -> Result | None:
    """The cached result; None if there is none that can be read."""
    if entry.result is None:
        return None
    try:
        return from_json(entry.result, netconf.string(entry.result, "cniVersion") or "0.2.0")
    except CniError:
        return None


def read_list(traces: Traces, trace: Trace, entry: Entry) -> None:
    """What the list of a cached attachment tells: a plugin that is not ours; rules of firewall for the addresses."""
    try:
        members = conflist.parse(entry.config, "the cache").members
    except CniError:
        trace.foreign = "whose configuration cannot be read"
        return
    types = [netconf.string(plugin, "type") for plugin in members]
    trace.foreign = next((kind for kind in types if kind not in MODULES), "")
    trace.whole = not WHOLE.isdisjoint(types)
    result = result_of(entry)
    words = {str(ip.address.host()) for ip in result.ips} if result is not None else set()
    if result is not None and "firewall" in types and words & traces.forwarded:
        trace.things.append(
            Thing(f"iptables rules of {ACCEPTED}", partial(forget_forwarded, traces, result), ours=False)
        )


def forget_forwarded(traces: Traces, result: Result) -> None:
    """Take out firewall's rules for the addresses of a result that no container has. They name nobody. CniError."""
    from cni_py.iptables import forward

    result.ips = [ip for ip in result.ips if ip_text(ip.address.packed) not in traces.in_use]
    bridges = [interface.name for interface in result.interfaces[:1]]
    forward.forget_addresses(traces.kernel, result, ADMIN_CHAIN, bridges)


def forwarded_words(kernel: Kernel) -> set[str]:
    """The words of all rules of firewall's chain in iptables, addresses among them. CniError."""
    families = concerned(kernel, ACCEPTED, table="filter")
    if not families:
        return set()
    from cni_py.iptables import tool

    listed = [tool.Rules.read(family, "filter").chains.get(("filter", ACCEPTED), []) for family in families]
    return {word for rules in listed for rule in rules for word in rule}


def of_iptables(traces: Traces) -> None:
    """The chains of masquerading and of published ports: their names are digests, comments name network and container."""
    families = sorted({*concerned(traces.kernel, ENTRIES), *concerned(traces.kernel, POSTROUTING)})
    if not families:
        return
    from cni_py.iptables import masquerade_rules, tool
    from cni_py.ports import iptables_rules

    seen = set()
    for family in families:
        rules = tool.Rules.read(family, NAT)
        for base, prefix in ((ENTRIES, PUBLISH), (POSTROUTING, MASQUERADE)):
            for entry in rules.chains.get((NAT, base), ()):
                network, container_id = masquerade_rules.label_in(entry)
                chain = chain_name(prefix, network, container_id)
                if not network or entry[-1] != chain:
                    continue
                trace = traces.of(Attachment(network, container_id, ""))
                trace.here = True
                for rule in rules.chains.get((NAT, chain), ()):
                    mapping = iptables_rules.mapping_of(rule)
                    trace.addresses |= {ip_text(mapping.container_ip)} if mapping is not None else set()
                source = address_in(masquerade_rules.value_of(entry, "-s")) if base == POSTROUTING else ""
                trace.addresses |= {source} if source else set()
                if chain not in seen:
                    seen.add(chain)
                    trace.things.append(
                        Thing(f"iptables chain {chain}", partial(forget_chain, traces, trace.key, base), ours=False)
                    )


def forget_chain(traces: Traces, key: Attachment, base: str) -> None:
    """Take out a container's chain and what leads to it. CniError."""
    kernel = traces.kernel.of_another(key, "")
    if base == ENTRIES:
        from cni_py.ports import chains

        chains.forget_chains(kernel, key, lambda _: True)
    else:
        from cni_py.iptables import masquerade

        masquerade.unmasquerade(kernel, lambda _: False)


def of_tables(traces: Traces) -> None:
    """nftables tables of newer Go plugins: cni_hostport names containers, cni_plugins_masquerade digests of attachments."""
    from cni_py.iptables import goplugins

    for family, number in NFPROTO.items():
        if not has_chain(traces.kernel, number, GO_HOSTPORT, GO_HOSTPORTS):
            continue
        seen = set()
        for rule in goplugins.rules_of("ip" if family == 4 else "ip6", GO_HOSTPORT):
            container_id = str(rule.get("comment", ""))
            if rule.get("chain") not in goplugins.HOSTPORT_CHAINS or not netconf.is_identifier(container_id):
                continue
            trace = traces.of(Attachment("", container_id, ""))
            trace.here = True
            trace.addresses |= {text for text in map(address_in, goplugins.texts_in(rule.get("expr"))) if text}
            if container_id not in seen:
                seen.add(container_id)
                what = f"rules of the nftables table {'ip' if family == 4 else 'ip6'} {GO_HOSTPORT}"
                remove = partial(goplugins.forget_ports, family, container_id, ())
                trace.things.append(Thing(what, remove, ours=False))
    if not has_chain(traces.kernel, NFPROTO_INET, GO_MASQUERADE, GO_CHECKS):
        return
    marks = {goplugins.mark_of(trace.key): trace for trace in traces.found.values() if trace.key.ifname}
    seen = set()
    for rule in goplugins.rules_of("inet", GO_MASQUERADE):
        mark = str(rule.get("comment", ""))[: 2 * goplugins.DIGITS + 1]
        found = marks.get(mark)
        if found is not None and mark not in seen:
            seen.add(mark)
            remove = partial(goplugins.forget_masquerading, found.key)
            found.things.append(Thing(f"rules of the nftables table inet {GO_MASQUERADE}", remove, ours=False))


def of_ifbs(traces: Traces) -> None:
    """bandwidth's ifb devices, of one container in one network; ours have an alias as well, and were found by it."""
    links = {link.name: link for link in traces.kernel.host.links() if link.kind == "ifb" and not link.alias}
    pairs = {(trace.key.network, trace.key.container_id) for trace in traces.found.values() if trace.key.network}
    for network, container_id in sorted(pairs):
        link = links.get(IFB_PREFIX + sha512_hex(network + container_id)[:12])
        if link is not None:
            trace = traces.of(Attachment(network, container_id, ""))
            remove = partial(traces.kernel.host.delete_links, [link.index])
            trace.things.append(Thing(f"interface {link.name}", remove, ours=False))


def inside(trace: Trace) -> Thing | None:
    """The interface in a namespace that still exists although its container does not; by its MAC, which the result names."""

    what = f"interface {trace.key.ifname} in {trace.netns}"
    return Thing(what, partial(delete_inside, trace), ours=False) if trace.macs and not trace.cookie else None


def delete_inside(trace: Trace) -> None:
    """CniError, OSError."""
    fd = netns.open_netns(trace.netns)
    try:
        side = Rtnl(fd)
        link = side.link(trace.key.ifname)
        if link is not None and link.kind and mac_text(link.mac) in trace.macs:
            side.delete_link(link.index)
        side.close()
    finally:
        os.close(fd)
