"""From the sorted model (view.py) to what is drawn: which bars there are, who hangs on them, what is said about each. Pure."""

from __future__ import annotations

from cni_py.host.model import Host, Link, Namespace
from cni_py.show import ids, words
from cni_py.show.parts import Bar, Member, Nic, Row, Scene
from cni_py.show.sight import SIGNS, Sight, look
from cni_py.show.view import STRANGERS, Plug, Trunk, addresses, short, walk

KINDS = ("bridge", "routed", "parent")  # from above
LISTENERS = 4  # that a box names
MAPPINGS = 4


def scene(host: Host) -> Scene:
    """The scene of a host."""
    sight = look(host)
    nics = tuple(_nic(trunk, sight) for trunk in walk(sight.view.trunks) if leads_out(trunk))
    bars = sorted(_bars(sight), key=lambda one: (one.strange, not one.members, KINDS.index(one.kind)))
    bars += [*_lost(sight), *_beside(sight), *_nowhere(sight)]
    publisher = _publisher(sight)
    loose = [one for one in host.findings if one not in sight.shown]
    rows = [
        Row(f"Linux {host.kernel} · cni-py {host.version}", "dim"),
        Row(words.summary(host, sight.view.plugs), "plain"),
    ]
    named = ids.names(host)
    rows += [Row(f"{SIGNS[one.level]} {ids.called(one.subject, named)}: {one.what}", one.level) for one in loose]
    level = next((level for level in ("error", "warning") if any(one.level == level for one in loose)), "")
    return Scene(f"host {host.hostname}", tuple(rows), nics, publisher, tuple(bars), level)


# Uplinks


def leads_out(trunk: Trunk) -> bool:
    """Whether a link of the host leads out of it. In a lab that is a veth: one that a default route uses, or with an address of
    its own network while no container that a plugin connected is behind it.
    """
    if trunk.is_bridge or trunk.link.kind == "ifb":
        return False
    if trunk.link.kind != "veth":
        return True
    routed = any(one.scope == "global" and one.prefix not in (32, 128) for one in trunk.link.addresses)
    return (bool(trunk.gateways) or routed) and not any(plug.is_ours for plug in trunk.plugs)


def _nic(trunk: Trunk, sight: Sight) -> Nic:
    link, name = trunk.link, ids.link(sight.host.root, trunk.link)
    if trunk.is_pair:  # what is at the other end is the LAN, not a container of this host
        sight.drawn.update(plug.namespace.key for plug in trunk.plugs if plug.namespace)
    said = [words.kind(link), words.gateways(trunk), f"port of {link.master}" if link.master else "", words.state(link)]
    rows = [Row(one) for one in addresses(link)] + [Row(one, "dim") for one in said if one]
    return Nic(name, link.name, (*rows, *sight.marks(name)), sight.level(name))


# Bars and what hangs on them


def _bars(sight: Sight) -> list[Bar]:
    bars: list[Bar] = []
    routed: list[Member] = []
    for trunk in walk(sight.view.trunks):
        if trunk.is_bridge:
            bars.append(_bridge(trunk, sight))
        elif trunk.is_pair and not leads_out(trunk):
            routed += [_member(plug, sight) for plug in trunk.plugs]
        elif trunk.plugs and not trunk.is_pair:
            bars.append(_parent(trunk, sight))
        elif trunk.link.kind == "veth" and not leads_out(trunk) and not trunk.link.master:
            routed.append(_unknown(trunk.link, sight))
    if routed:
        about = Row("a route leads to each", "plain")
        bars.append(Bar("host", "routed", "routed, without a bridge", (about,), tuple(routed)))
    return bars


def _bridge(trunk: Trunk, sight: Sight) -> Bar:
    link, name = trunk.link, ids.link(sight.host.root, trunk.link)
    members = [_member(plug, sight) for plug in trunk.plugs]
    members += [_unknown(one.link, sight) for one in trunk.branches if one.link.kind == "veth"]
    rows = [Row(one) for one in addresses(link)]
    for network in trunk.networks:
        rows.append(Row(f"network {network.name}", "plain"))
        pool = sight.view.pools.get(network.name)
        rows += [Row(text, "dim") for text in words.fill(pool).split(", ")] if pool else []
    said = [words.kind(link) if link.source in STRANGERS else "", words.state(link)]
    said += ["VLAN filtering"] if link.vlan_filtering else []
    said += [f"{one.link.name} is a port" for one in trunk.branches if one.link.kind != "veth"]
    said += [] if members else ["no container on it"]
    rows += [Row(one, "dim") for one in said if one]
    objects = [name, *map(ids.network, trunk.networks)]
    down = "error" if members and not link.up else ""
    hidden = next((one for plug in trunk.plugs for one in plug.masquerades), None)
    return Bar(
        name,
        "bridge",
        f"bridge {link.name}",
        (*rows, *sight.marks(*objects)),
        tuple(members),
        sight.level(*objects) or down,
        trunk.is_stranger,
        words.masquerading(trunk.plugs),
        ids.masquerade(sight.numbers[id(hidden)]) if hidden else "",
    )


def _parent(trunk: Trunk, sight: Sight) -> Bar:
    name = ids.link(sight.host.root, trunk.link)
    rows = [Row("the containers are on its LAN themselves", "plain")]
    rows += [Row(f"network {one.name}", "plain") for one in trunk.networks]
    objects = [name, *map(ids.network, trunk.networks)]
    rows += sight.marks(*objects)
    members = tuple(_member(plug, sight) for plug in trunk.plugs)
    return Bar(name, "parent", f"parent {trunk.link.name}", tuple(rows), members, sight.level(*objects))


def _unknown(link: Link, sight: Sight) -> Member:
    """A veth whose other end is not seen."""
    name = ids.link(sight.host.root, link)
    rows = (Row("its other end is in a namespace", "dim"), Row("that is not seen", "dim"), *sight.marks(name))
    return Member(
        name, "unknown", rows, level=sight.level(name), strange=True, gone=True, outer=link.name, wire_id=name
    )


def _member(plug: Plug, sight: Sight) -> Member:
    """The box of a container as seen from one of its interfaces; the first of its boxes has everything."""
    again = plug.namespace is not None and plug.namespace.key in sight.drawn
    ports = sight.ports(plug)
    wire = ids.link(sight.host.root, plug.outer) if plug.outer else _inner(plug)
    name, objects = _objects(plug, wire, [sight.port(one) for one in ports])
    if plug.namespace:
        sight.drawn.add(plug.namespace.key)
    texts = [f"{plug.ifname} {one}" for one in plug.addresses] or [f"{plug.ifname} without an address"]
    rows = [] if again else _runs(plug)
    rows += [Row(one) for one in texts]
    rows += [] if again or plug.namespace is None else _listens(plug.namespace)
    said = words.bridge_port(plug.outer) if plug.outer else ""
    rows += [Row(said, "plain")] if said else []
    marks = () if again else sight.marks(*objects)
    rows += marks or [Row(f"{SIGNS['error']} {one}", "error") for one in plug.troubles]
    strange = plug.source in STRANGERS or not plug.is_ours
    level = sight.level(*objects) or ("error" if plug.troubles else "")
    is_dead = plug.attachment is not None and plug.attachment.live == "dead"
    cut = [one for one in (plug.outer, plug.inner) if one is not None and not one.up]
    return Member(
        name,
        plug.name,
        tuple(rows),
        "same as above" if again else "dead" if is_dead else words.MAKERS.get(plug.source, ""),
        level,
        strange,
        plug.namespace is None or is_dead,
        plug.outer.name if plug.outer else plug.inner.kind if plug.inner else "",
        plug.ifname,
        wire or name,
        "error" if cut else sight.level(*([wire] if wire else [])),
        sight.ways(ports),
    )


def _inner(plug: Plug) -> str:
    return ids.link(plug.namespace, plug.inner) if plug.namespace and plug.inner else ""


def _objects(plug: Plug, wire: str, ports: list[str]) -> tuple[str, list[str]]:
    """The id of a member, and of all whose findings belong in its box."""
    found = [ids.namespace(plug.namespace)] if plug.namespace else []
    found += [ids.attachment(plug.attachment)] if plug.attachment else []
    found += [one for one in (wire, _inner(plug)) if one]
    return found[0], [*dict.fromkeys(found), *ports]


def _runs(plug: Plug) -> list[Row]:
    """What runs in it, and whose it is."""
    rows = []
    if plug.processes and plug.namespace:
        more = plug.namespace.process_count - 1
        text = f"{plug.processes[0].name} (pid {plug.processes[0].pid})"
        rows.append(Row(text + (f" and {words.counted(more, 'other')}" if more > 0 else ""), "plain"))
    if plug.containers:
        own = plug.containers[0]
        image = own.image.removeprefix("docker.io/").removeprefix("library/")
        said = [image, f"pod {own.pod}" if own.pod else "", own.runtime, short(own.id)]
        rows.append(Row(" · ".join(one for one in said if one), "dim"))
    elif plug.container_id and plug.name != short(plug.container_id):
        rows.append(Row(f"id {short(plug.container_id)}", "dim"))
    return rows


def _listens(namespace: Namespace) -> list[Row]:
    ports = dict.fromkeys(f"{one.port}/{one.protocol}" for one in sorted(namespace.sockets, key=lambda one: one.port))
    more = ", ..." if len(ports) > LISTENERS else ""
    return [Row(f"listens on {', '.join([*ports][:LISTENERS])}{more}", "plain")] if ports else []


# What hangs on nothing


def _lost(sight: Sight) -> list[Bar]:
    members = tuple(_member(plug, sight) for plug in sight.view.lost)
    about = (Row("the links that their records name are missing", "plain"),)
    return [Bar("host", "apart", "without a link", about, members)] if members else []


def _beside(sight: Sight) -> list[Bar]:
    """Namespaces that no wire leads to. Those with nothing in them but a loopback interface are counted."""
    members: list[Namespace] = []
    empty: list[Namespace] = []
    for namespace in sight.view.beside:
        if namespace.key not in sight.drawn:
            alone = all("loopback" in link.flags or link.name == "lo" for link in namespace.links)
            (empty if alone else members).append(namespace)
    boxes = [_apart(one, sight) for one in members]
    if empty:
        shown = ", ".join(name_of(one) for one in empty[:3]) + (", ..." if len(empty) > 3 else "")
        rows = (Row(shown, "plain"), Row("with a loopback interface alone", "dim"))
        boxes.append(Member(ids.namespace(empty[0]), words.counted(len(empty), "namespace"), rows, strange=True))
    about = (Row("no wire leads to the host", "plain"),)
    return [Bar("host", "apart", "not connected", about, tuple(boxes), strange=True)] if boxes else []


def _apart(namespace: Namespace, sight: Sight) -> Member:
    name = ids.namespace(namespace)
    rows = [
        Row(f"{link.name} {one}") for link in namespace.links if "loopback" not in link.flags for one in addresses(link)
    ]
    rows += [Row(f"{one.name} (pid {one.pid})", "plain") for one in namespace.processes[:1]]
    rows += sight.marks(name)
    return Member(name, name_of(namespace), tuple(rows), level=sight.level(name), strange=True)


def name_of(namespace: Namespace) -> str:
    """A name for a namespace of which no more is known."""
    if namespace.names:
        return namespace.names[0].rpartition("/")[2]
    return namespace.processes[0].name if namespace.processes else namespace.key


def _nowhere(sight: Sight) -> list[Bar]:
    """Published ports whose container is not seen."""
    members = []
    for target, ports in sorted(sight.by_address.items()):
        mine = [sight.port(one) for one in ports]
        rows = sight.marks(*mine) or (Row("no container with this address is seen", "warning"),)
        strange = all(one.source in STRANGERS for one in ports)
        tag = words.MAKERS.get(ports[0].source, "")
        title = target or "unknown"
        members.append(Member(mine[0], title, rows, tag, sight.level(*mine), strange, True, ways=sight.ways(ports)))
    about = (Row("no container is seen at these targets of ports", "plain"),)
    return [Bar("host", "nowhere", "nobody there", about, tuple(members))] if members else []


# portfwd


def _publisher(sight: Sight) -> Member | None:
    """portfwd's service, with those of its mappings that are drawn at no container."""
    host = sight.host
    if not host.portfwd and not host.relays:
        return None
    drawn = {one.place.rpartition(" ")[2] for one in host.ports if one.way != "nat"}
    rows = [Row(host.portfwd or "not asked", "plain")]
    rows += [Row(words.counted(len(host.relays), "mapping"), "dim")] if host.relays else []
    others = [one for one in host.relays if one.id not in drawn]
    for one in others[:MAPPINGS]:
        rows.append(Row(f"{one.listen} → {one.target}"))
        rows += [Row(f"{SIGNS['error']} {one.problem}", "error")] if one.problem else []
    rows += [Row(f"and {len(others) - MAPPINGS} more", "dim")] if len(others) > MAPPINGS else []
    rows += sight.marks(ids.PUBLISHER, *(ids.relay(one) for one in host.relays))
    level = sight.level(ids.PUBLISHER, *(ids.relay(one) for one in host.relays))
    level = level or ("error" if any(one.problem for one in host.relays) else "")
    return Member(ids.PUBLISHER, ids.PUBLISHER, tuple(rows), level=level)
