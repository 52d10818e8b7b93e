"""What dnat, snat, masquerade and redirect make of a packet, and rules that write into its header."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from typing import TYPE_CHECKING

from cni_py.explain.chains import After, State
from cni_py.explain.fields import ADDRESS_KIND
from cni_py.explain.values import span

if TYPE_CHECKING:
    from cni_py.explain.evaluation import Run
    from cni_py.explain.packet import Packet
    from cni_py.explain.values import Json, Span, Value

FAMILIES = {"ip": 4, "ip6": 6}
FIELDS = {
    "saddr": ("source", "saddr"),
    "daddr": ("destination", "daddr"),
    "sport": ("source_port", "source_port"),
    "dport": ("destination_port", "destination_port"),
}
HOPS_LEFT = ("ttl", "hoplimit")
HOPS_ENOUGH = 8  # no way within one host is longer
Targets = list[tuple["Span | None", "Span | None"]]  # address and port; None: it stays


def translate(run: Run, kind: str, inner: Json, state: State) -> list[After]:
    """A NAT statement. It accepts the packet, as far as this chain goes."""
    inner = inner if isinstance(inner, dict) else {}
    family = FAMILIES.get(str(inner.get("family")), state.packet.family)
    if kind == "masquerade":
        return [_masquerade(run, state)]
    if kind == "redirect":
        return _redirect(run, inner, state)
    found = _targets(run, inner, family, state)
    if isinstance(found, str):
        return run.anything(state, found)
    targets, why, maybe_none = found
    if family != state.packet.family:  # after its maps have been looked up, it does nothing
        ways = [After("go on", state)] if targets else []
    else:
        ways = [_apply(run, kind, target, state, element) for target, element in targets]
    if maybe_none:
        ways.append(After("next", state))
    return run.fork(state, why, ways)


def _targets(
    run: Run, inner: Json, family: int, state: State
) -> str | tuple[list[tuple[tuple[Span | None, Span | None], str]], str, bool]:
    """Where it may lead, each with the element that says so; why there are several; whether it may be nowhere."""
    from cni_py.explain import nft_text

    kind = ADDRESS_KIND.get(family, "")
    indexes = run.walk.world.indexes
    address, port = inner.get("addr"), inner.get("port")
    ports = _span_of(run, "inet_service", port, state)
    if port is not None and ports is None:
        return "the port of a translation"
    if not isinstance(address, dict) or "map" not in address:
        one = _span_of(run, kind, address, state)
        if address is not None and one is None:
            return "the address of a translation"
        return [((one, ports), "")], "", False
    mapping = address["map"]
    if not isinstance(mapping, dict):
        return "the map of a translation"
    found = run.look_up(mapping.get("key"), mapping.get("data"), state)
    targets: dict[tuple[Span | None, Span | None], str] = {}
    for element in found.elements:
        if element is None:
            continue
        data = element.data
        parts = data["concat"] if isinstance(data, dict) and isinstance(data.get("concat"), list) else [data]
        one = span(kind, parts[0], indexes)
        two = span("inet_service", parts[1], indexes) if len(parts) == 2 else ports
        if one is None or len(parts) > 2 or (len(parts) == 2 and two is None):
            return found.why or "the data of a map's element"
        if "netmap" in str(inner.get("flags")):
            one = _net(one, element.key[0] if element.key else None, state)
        targets.setdefault((one, two), nft_text.element(element, mapping.get("data")))
    return list(targets.items()), found.why, None in found.elements


def _net(network: Span, key: Span | None, state: State) -> Span:
    """`prefix to`: the network's part is replaced, the host's stays."""
    if key is None or key[1] - key[0] != network[1] - network[0]:
        return network
    for text in (state.packet.destination, state.packet.source):
        address = span(ADDRESS_KIND.get(state.packet.family, ""), text, {})
        if address is not None and key[0] <= address[0] <= key[1]:
            return (network[0] + address[0] - key[0],) * 2
    return network


def _span_of(run: Run, kind: str, json: Json, state: State) -> Span | None:
    """An address or port, or a range of them; an expression that yields one."""
    if json is None:
        return None
    found = span(kind, json, run.walk.world.indexes)
    if found is not None or not isinstance(json, dict):
        return found
    value: Value = run.value(json, state)
    return value.spans[0] if len(value.spans) == 1 and not value.maybe_absent else None


def _apply(run: Run, kind: str, target: tuple[Span | None, Span | None], state: State, element: str) -> After:
    """The packet with that address and port."""
    address, port = target
    packet = state.packet
    effect = f"{kind} to {_text(packet.family, address, port)}"
    if address is not None and address[0] != address[1]:
        step = run.step(effect, why="the kernel chooses one of several addresses", element=element)
        return After("unknown", state.with_step(step))
    text = str(_ip(packet.family, address[0])) if address is not None else ""
    changed = to_destination(packet, text, port) if kind == "dnat" else to_source(packet, text, port)
    state = replace(state, packet=changed, nat=kind, translated=True)
    return After("accept", state.with_step(run.step(effect, element=element)))


def _ip(family: int, number: int) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return ipaddress.IPv4Address(number & 0xFFFFFFFF) if family == 4 else ipaddress.IPv6Address(number & (1 << 128) - 1)


def _text(family: int, address: Span | None, port: Span | None) -> str:
    """10.88.0.2:80, [fd00::2]:80, :80, 10.88.0.2-10.88.0.9."""
    ends = sorted({_ip(family, end) for end in address}) if address else []
    text = "-".join(str(end) for end in ends)
    if port is None:
        return text
    ports = "-".join(str(end) for end in sorted(set(port)))
    return f"[{text}]:{ports}" if ":" in text else f"{text}:{ports}"


def to_destination(packet: Packet, address: str, port: Span | None) -> Packet:
    """The packet with another destination. Where nothing changes it does not count as translated."""
    before = (packet.destination, packet.destination_port)
    packet = _port(packet, "destination_port", port)
    packet = replace(packet, destination=address or packet.destination)
    if (packet.destination, packet.destination_port) == before and "destination_port" not in packet.unsure:
        return packet
    return replace(
        packet,
        original_destination=packet.original_destination or before[0],
        original_port=packet.original_port or before[1],
        ct_status=packet.ct_status | {"dnat"},
    )


def to_source(packet: Packet, address: str, port: Span | None) -> Packet:
    """The packet with another source. Its port stays where it is free, which is taken for granted here."""
    before = (packet.source, packet.source_port)
    packet = _port(packet, "source_port", port)
    packet = replace(packet, source=address or packet.source)
    if (packet.source, packet.source_port) == before and "source_port" not in packet.unsure:
        return packet
    return replace(packet, ct_status=packet.ct_status | {"snat"})


def _port(packet: Packet, field: str, port: Span | None) -> Packet:
    """A port of a range that holds it already stays (nf_nat_core.c, get_unique_tuple)."""
    now = packet.destination_port if field == "destination_port" else packet.source_port
    if port is None or (now and field not in packet.unsure and port[0] <= now <= port[1]):
        return packet
    if port[0] != port[1]:
        return replace(packet, unsure=packet.unsure | {field})
    packet = replace(packet, unsure=packet.unsure - {field})
    if field == "destination_port":
        return replace(packet, destination_port=port[0])
    return replace(packet, source_port=port[0])


def _masquerade(run: Run, state: State) -> After:
    """Where the link has the source address itself, nothing may change, and that does not count as translated."""
    packet = state.packet
    link = run.walk.world.links.get(packet.oif)
    own = {one.address for one in link.addresses} if link is not None else set()
    if own and packet.oif != "lo" and packet.source not in own:
        packet = replace(packet, source="", ct_status=packet.ct_status | {"snat"})
    else:
        packet = replace(packet, source="", unsure=packet.unsure | {"snat"})
    state = replace(state, packet=packet, nat="masquerade", translated=True)
    return After("accept", state.with_step(run.step("masquerade")))


def _redirect(run: Run, inner: Json, state: State) -> list[After]:
    """To this host itself: on its way in to the first address of the link that it came by."""
    packet = state.packet
    port = _span_of(run, "inet_service", inner.get("port"), state)
    if inner.get("port") is not None and port is None:
        return run.anything(state, "the port of a redirect")
    if run.walk.hook == "output":
        address = "127.0.0.1" if packet.family == 4 else "::1"
    else:
        link = run.walk.world.links.get(packet.iif)
        own = [one.address for one in link.addresses if (":" in one.address) == (packet.family == 6)] if link else []
        if link is None:
            return run.anything(state, f"redirect: the addresses of {packet.iif} are not known")
        if not own:
            return [After("drop", state.with_step(run.step(f"drop: {packet.iif} has no address to redirect to")))]
        address = own[0]
    changed = to_destination(packet, address, port)
    state = replace(state, packet=changed, nat="redirect", translated=True)
    text = _text(packet.family, None, port) if port else ""
    return [After("accept", state.with_step(run.step(f"redirect to {text or address}")))]


def rewritten(run: Run, name: str, header: Json, value: Json, state: State) -> list[After]:
    """`ip daddr set ...` and the like: without conntrack's knowledge."""
    if name in HOPS_LEFT:
        found = _span_of(run, "", value, state)
        enough = found is not None and found[0] >= HOPS_ENOUGH
        return [After("go on", state)] if enough else run.anything(state, f"`{name} set`: the packet may go no further")
    if name not in FIELDS:
        return [After("go on", state)]
    field, unsure = FIELDS[name]
    packet = state.packet
    kind = "inet_service" if name.endswith("port") else ADDRESS_KIND.get(packet.family, "")
    protocol = (
        header["payload"].get("protocol")
        if isinstance(header, dict) and isinstance(header.get("payload"), dict)
        else ""
    )
    if protocol in FAMILIES and FAMILIES[protocol] != packet.family:
        return [After("next", state)]
    found = _span_of(run, kind, value, state)
    if protocol == "ether":
        return [
            After("go on", replace(state, packet=replace(packet, source_mac="")))
            if name == "saddr"
            else After("go on", state)
        ]
    if found is None or found[0] != found[1]:
        return [After("go on", replace(state, packet=replace(packet, unsure=packet.unsure | {unsure})))]
    new: str | int = found[0] if kind == "inet_service" else str(_ip(packet.family, found[0]))
    changed = {
        "source": lambda: replace(packet, source=str(new)),
        "destination": lambda: replace(packet, destination=str(new)),
        "source_port": lambda: replace(packet, source_port=int(new)),
        "destination_port": lambda: replace(packet, destination_port=int(new)),
    }[field]()
    return [After("go on", replace(state, packet=changed).with_step(run.step(f"{protocol} {name} set {new}")))]
