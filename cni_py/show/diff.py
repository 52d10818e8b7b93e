"""What differs between two models of a host: a sentence for each object that appeared, vanished or changed. Pure.

    changes(before, after)    what the kernel and the records have: links, addresses, routes, ports, containers, ...

What changes all the time without meaning anything is left out: neighbours, learnt MAC addresses, tracked connections, processes
of containers, counters, and when something was looked at.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from cni_py.host.model import Finding, Host, Link, Namespace, Port, Route
from cni_py.show import words
from cni_py.show.view import addresses, short

Kind = Literal["appeared", "vanished", "changed"]
# What is said of an object, by the name of the fact: "_MAC" is compared and not said, "+addresses" is said and not compared
Facts = Mapping[str, str]
Key = tuple[str, str]  # "link", "eth0 net:[4026532001]"
LONG = 80  # characters of two values that are not printed
OF_IPTABLES = ("filter", "nat", "mangle", "raw", "security")  # tables that iptables-nft has in nftables
SIGNS: Mapping[Kind, str] = {"appeared": "+", "vanished": "-", "changed": "~"}


@dataclass(frozen=True, slots=True)
class Object:
    """A thing that is compared. Names are for people: a container's may change while its namespace stays."""

    what: str  # "link", "published port"
    name: str  # "eth0 in web"
    facts: Facts
    within: Key | None = None  # a namespace, a link
    ident: str = ""  # where it is not the name

    @property
    def key(self) -> Key:
        return self.what, self.ident or self.name


@dataclass(frozen=True, slots=True)
class Change:
    """One object that is not as it was."""

    kind: Kind
    what: str  # "link", "published port"
    name: str
    detail: str

    def __str__(self) -> str:
        return f"{SIGNS[self.kind]} {self.what} {self.name}{f': {self.detail}' if self.detail else ''}"


def changes(before: Host, after: Host) -> list[Change]:
    """What to do to `before` to get `after`, in the order of the model.

    What is inside a namespace, or on a link, that appeared or vanished as a whole is not told one by one.
    """
    old, new = objects(before), objects(after)
    found = [
        Change("vanished", one.what, one.name, said(one.facts))
        for key, one in old.items()
        if key not in new and not _within(one, new)
    ]
    for key, one in new.items():
        if key in old and one.facts != old[key].facts:
            detail = compared(old[key].facts, one.facts)
            found += [Change("changed", one.what, one.name, detail)] if detail else []
        elif key not in old and not _within(one, old):
            found.append(Change("appeared", one.what, one.name, said(one.facts)))
    return found


def _within(one: Object, others: Mapping[Key, Object]) -> bool:
    """Whether the others have not what it is in."""
    return one.within is not None and one.within not in others


def said(facts: Facts) -> str:
    """Facts in a row, but for those that are compared only ("_")."""
    told = [(name.lstrip("+"), value) for name, value in facts.items() if value and not name.startswith("_")]
    return ", ".join(f"{name} {value}".strip() for name, value in told)


def compared(old: Facts, new: Facts) -> str:
    """ "state down, was up". Of long values that are not printed it is said that they changed, if nothing else tells it."""
    found: list[str] = []
    quiet = []
    for name in dict.fromkeys((*old, *new)):
        one, other = old.get(name, ""), new.get(name, "")
        if one == other or name.startswith("+"):
            continue
        label = name.lstrip("_")
        if name != label and (len(one) + len(other) > LONG or "\n" in one + other):
            quiet.append(f"{label} changed")
        else:
            found.append(f"{label} {other or 'none'}, was {one or 'none'}".strip())
    return "; ".join(found or quiet)


def objects(host: Host) -> dict[Key, Object]:
    """Everything that is compared. Of several with one name the later ones are numbered."""
    found: dict[Key, Object] = {}
    counts: Counter[Key] = Counter()
    for one in _all(host, _labels(host)):
        number = counts[one.key] = counts[one.key] + 1
        found[one.key if number == 1 else (one.what, f"{one.key[1]} ({number})")] = one
    return found


def _all(host: Host, labels: Mapping[str, str]) -> Iterator[Object]:
    yield Object(
        "host", host.hostname, {"kernel": host.kernel, "cni-py": host.version, "portfwd": host.portfwd}, None, "host"
    )
    for network in host.networks:
        types, subnets = ", ".join(network.types), ", ".join(network.subnets)
        facts = {"plugins": types, "bridge": network.bridge, "subnets": subnets, "problem:": network.problem}
        yield Object("network", network.name, facts)
    yield from _containers(host)
    for namespace in host.namespaces:
        yield from _inside(namespace, labels, host)
    names = _names(host)
    for port in host.ports:
        yield Object("published port", words.listens(port), _of_port(port, names))
    for masquerade in host.masquerades:
        yield Object("masquerade", f"of {masquerade.address}", {"by": masquerade.backend})
    for relay in host.relays:
        state = {"state": relay.state, "owner": relay.owner, "problem:": relay.problem}
        yield Object("mapping of portfwd", f"{relay.listen} to {relay.target}", state)
    for pool in host.pools:
        for held in pool.reservations:
            owner = f"{pool.network}/{short(held.container_id)}/{held.ifname}"
            yield Object("reservation", held.address, {"of": owner, "holder": held.live})
    yield from _findings("finding", host.findings)
    yield from _findings("gap", host.gaps)


def _findings(what: str, found: Iterable[Finding]) -> Iterator[Object]:
    for one in found:
        yield Object(what, f"{one.code} of {one.subject}", {"": one.what, "_level": one.level})


def _labels(host: Host) -> dict[str, str]:
    """Names of namespaces: the container's, or that of a file."""
    names = _names(host)
    found = {host.root.key: "the host"}
    for record in host.attachments:
        if record.namespace:
            found.setdefault(record.namespace, names.get(record.container_id) or short(record.container_id))
    for namespace in host.namespaces:
        called = namespace.names[0].rpartition("/")[2] if namespace.names else namespace.key
        found.setdefault(namespace.key, called)
    return found


def _names(host: Host) -> dict[str, str]:
    return {one.id: one.name for one in host.containers}


def _containers(host: Host) -> Iterator[Object]:
    for one in host.containers:
        facts = {"": f"{one.runtime} {short(one.id)}", "state": "running" if one.running else "not running"}
        yield Object("container", one.name or short(one.id), facts, None, one.id)
    names = _names(host)
    for record in host.attachments:
        facts = {
            "": ", ".join(record.addresses),
            "by": ", ".join(record.host_links),
            "bridge": record.bridge,
            "holder": record.live,
            "state": "unfinished" if record.unfinished else "",
            "plugins": ", ".join(record.plugins),
        }
        who = names.get(record.container_id) or short(record.container_id)
        ident = f"{record.network}/{record.container_id}/{record.ifname}"
        yield Object("attachment", f"{record.network}/{who}/{record.ifname}", facts, None, ident)


def _inside(namespace: Namespace, labels: Mapping[str, str], host: Host) -> Iterator[Object]:
    """Links, routes, rules, listeners, sysctls and rulesets of a namespace."""
    label, place, suffix = labels[namespace.key], None, ""
    if namespace.key != host.root.key:
        place, suffix = ("namespace", namespace.key), f" in {label}"
        yield Object("namespace", label, {"at": ", ".join(namespace.names)}, None, namespace.key)
    for link in namespace.links:
        ident = f"{link.name} {place[1]}" if place else link.name
        yield Object("link", link.name + suffix, _of_link(link, labels), place, ident)
        for address in link.addresses:
            # "tentative" and "permanent" come and go by themselves
            flags = ", ".join(flag for flag in address.flags if flag in ("dadfailed", "deprecated"))
            name = f"{address.address}/{address.prefix} on {link.name}"
            yield Object("address", name + suffix, {"": flags}, ("link", ident), f"{address.address} {ident}")
    for what, name, facts in (*_routing(namespace), *_rulesets(namespace), *_others(namespace)):
        yield Object(what, name + suffix, facts, place, f"{name} {place[1]}" if place else "")


def _others(namespace: Namespace) -> Iterator[tuple[str, str, Facts]]:
    for one in namespace.sockets:
        yield "listener", words.socket(one), {"program": one.program}
    for name, value in namespace.sysctls:
        if not name.endswith("_count"):  # how many connections are tracked now
            yield "sysctl", name, {"": value}


def _routing(namespace: Namespace) -> Iterator[tuple[str, str, Facts]]:
    for route in namespace.routes:
        if route.kind not in ("local", "broadcast", "multicast", "anycast"):  # they come with an address
            yield "route", _route(route), {"metric": str(route.metric or ""), "source": route.source}
    for rule in namespace.rules:
        said = [f"IPv{rule.family} {rule.priority}", rule.source and f"from {rule.source}"]
        said += [rule.destination and f"to {rule.destination}", rule.iif and f"iif {rule.iif}"]
        said += [rule.oif and f"oif {rule.oif}", f"mark {rule.mark:#x}" if rule.mark else ""]
        yield "routing rule", " ".join(filter(None, [*said, rule.action, str(rule.table or "")])), {}


def _of_link(link: Link, labels: Mapping[str, str]) -> Facts:
    state = words.state(link) or "up"
    return {
        "": link.kind,
        "state": state,
        "+": ", ".join(addresses(link)),
        "in bridge": link.master,
        "+other end in": labels.get(link.peer_namespace, "") if link.kind == "veth" else "",
        "_other end": link.peer_namespace,
        "_MTU": str(link.mtu),
        "_MAC": link.mac,
        "_port": words.bridge_port(link),
        "_alias": link.alias,
    }


def _route(route: Route) -> str:
    via = f" via {route.gateway}" if route.gateway else ""
    by = f" by {route.link}" if route.link else ""
    table = "" if route.table == 254 else f" in table {route.table}"
    kind = "" if route.kind == "unicast" else f"{route.kind} "
    default = {"0.0.0.0/0": "default", "::/0": "IPv6 default"}
    return f"{kind}{default.get(route.destination, route.destination)}{via}{by}{table}"


def _of_port(port: Port, names: Mapping[str, str]) -> Facts:
    who = names.get(port.container_id) or short(port.container_id)
    return {"to": words.leads(port), "of": who, "": words.way(port), "_place": port.place}


def _rulesets(namespace: Namespace) -> Iterator[tuple[str, str, Facts]]:
    """Chains, sets and maps of nftables with their sizes; the rules of iptables, as iptables-save prints them."""
    dumped = [program for program, text in namespace.iptables if text and "nft" in program]
    theirs = ["ip6" if program.startswith("ip6") else "ip" for program in dumped]
    for kind, where, contents, policy in _of_nftables(namespace.nftables):
        family, table, _ = where.split(" ", 2)
        if family not in theirs or table not in OF_IPTABLES:
            noun = "rules" if kind == "chain" else "elements"
            facts = {noun: str(len(contents)), "policy": policy, f"_{noun}": "\n".join(sorted(contents))}
            yield f"nftables {kind}", where, facts
    for program, text in namespace.iptables:
        table = ""
        for line in text.splitlines():
            table = line[1:] if line.startswith("*") else table
            if line.startswith(("-A ", "-P ")):
                yield f"{program} rule", f"{line[3:]} of table {table}", {}


def _of_nftables(text: str) -> Iterator[tuple[str, str, list[str], str]]:
    """Kind, "family table name", rules or elements, policy. Nothing where the text is not what nft prints."""
    found: dict[tuple[str, str], tuple[list[str], str]] = {}
    try:
        for entry in json.loads(text)["nftables"] if text else ():
            for kind, one in entry.items():
                if kind in ("chain", "set", "map"):
                    elements = [json.dumps(_still(each)) for each in one.get("elem") or ()]
                    where = f"{one['family']} {one['table']} {one['name']}"
                    found[kind, where] = (elements, str(one.get("policy", "")) if kind == "chain" else "")
                elif kind == "rule":
                    where = f"{one['family']} {one['table']} {one['chain']}"
                    found.setdefault(("chain", where), ([], ""))[0].append(json.dumps(_still(one.get("expr"))))
    except (ValueError, KeyError, TypeError, AttributeError):
        return
    for (kind, where), (contents, policy) in found.items():
        yield kind, where, contents, policy


def _still(value: object) -> object:
    """An expression without its counters and the time that an element has left."""
    if isinstance(value, dict):
        return {name: _still(one) for name, one in value.items() if name not in ("counter", "expires", "last")}
    return [_still(one) for one in value] if isinstance(value, list) else value
