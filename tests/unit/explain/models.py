"""A host with containers web (8080, by a rule of nftables) and db on bridge cni0: a model, to be changed in one thing."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from cni_py.explain import question, walk
from cni_py.explain.walk import Explained
from cni_py.explain.way import Way
from cni_py.host.model import Host, Port, Route
from tests.unit.host import worlds

NOTHING = '{"nftables": []}'
WEB, DB = worlds.WEB.host_veth, worlds.DB.host_veth  # the host's ends
SYSCTLS = (("net.ipv4.ip_forward", "1"), ("net.ipv4.conf.cni0.route_localnet", "1"))


def ruleset(*more: dict[str, Any]) -> str:
    """As `nft -j list ruleset` prints it: port 8080 of this host leads to web; clients on the bridge are masqueraded."""
    own: dict[str, Any] = {"family": "ip", "table": "t"}
    dnat = [
        {"match": {"op": "==", "left": {"fib": {"result": "type", "flags": ["daddr"]}}, "right": "local"}},
        {"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": 8080}},
        {"dnat": {"addr": "192.0.2.2", "port": 80}},
    ]
    entries: list[dict[str, Any]] = [{"table": {"family": "ip", "name": "t", "handle": 1}}]
    for number, (hook, kind, priority) in enumerate((("prerouting", "nat", -100), ("output", "nat", -100)), 2):
        chain = {"name": hook, "handle": number, "type": kind, "hook": hook, "prio": priority, "policy": "accept"}
        entries.append({"chain": own | chain})
        entries.append({"rule": own | {"chain": hook, "handle": number + 10, "expr": dnat}})
    chain = {"name": "postrouting", "handle": 4, "type": "nat", "hook": "postrouting", "prio": 100, "policy": "accept"}
    entries.append({"chain": own | chain})
    for number, net in ((20, ("192.0.2.0", 24)), (21, ("127.0.0.0", 8))):
        prefix = {"prefix": {"addr": net[0], "len": net[1]}}
        source = {"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "saddr"}}, "right": prefix}}
        entries.append(
            {"rule": own | {"chain": "postrouting", "handle": number, "expr": [source, {"masquerade": None}]}}
        )
    return json.dumps({"nftables": [*entries, *more]})


def routes() -> tuple[Route, ...]:
    return (
        Route(4, 254, "198.51.100.0/24", link="lan0"),
        Route(4, 254, "192.0.2.0/24", link="cni0"),
    )


def host() -> Host:
    """Healthy."""
    found = worlds.healthy()
    own = Route(4, 254, "192.0.2.0/24", link="eth0")
    inner = [replace(one, routes=(own, *one.routes), nftables=NOTHING) for one in found.namespaces[1:]]
    root = replace(found.root, routes=routes(), nftables=ruleset(), sysctls=SYSCTLS)
    port = replace(found.ports[0], place="ip t prerouting")
    return replace(found, namespaces=(root, *inner), ports=(port,))


def explained(model: Host, text: str = "8080", asked: str = "") -> Explained:
    return walk.explain(model, question.parse(text), asked)


def way(model: Host, kind: str = "lan", text: str = "8080") -> Way:
    """The way of a client of that kind, by IPv4."""
    return next(one for one in explained(model, text).ways if one.kind == kind and one.family == 4)


def code(model: Host, kind: str = "lan", text: str = "8080") -> str:
    """The code of the hop that decides; "answers" if all pass."""
    hop = way(model, kind, text).deciding
    return hop.code if hop else "answers"


def with_port(model: Host, **changes: Any) -> Host:
    return replace(model, ports=(replace(model.ports[0], **changes),))


def relayed(model: Host) -> Host:
    """The same port, by a relay alone."""
    port: Port = replace(model.ports[0], way="relay", backend="docker-proxy", source="docker")
    model = worlds.with_attachment(worlds.with_root(model, nftables=NOTHING), operations=())
    return replace(model, ports=(port,))
