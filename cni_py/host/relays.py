"""Ports that programs relay: portfwd's service, asked by its control socket; processes such as docker-proxy, by their sockets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from cni_py.errors import CniError
from cni_py.host.model import Port, Relay, Socket, Source
from cni_py.host.owners import NOBODY, Owner, Owners
from cni_py.host.spaces import key_at
from cni_py.kernel import processes
from cni_py.ports import relay
from cni_py.protocol.gojson import Object

NOT_RUNNING = "not running"
PLACES = ("path", "pid", "container")  # of a target in a namespace: portfwd/mapping.py
PROXIES = ("docker-proxy", "portfwd-docker-proxy")
# Programs that hold a port for a container and carry what comes; they do not say for which.
CARRIERS: dict[str, Source] = {
    "rootlessport": "podman",
    "rootlessport-child": "podman",
    "pasta": "podman",
    "pasta.avx2": "podman",
    "slirp4netns": "podman",
    "rootlesskit": "other",
}


def ask() -> tuple[list[Object], str]:
    """The mappings of portfwd's service as it lists them, and what is to be said of it: model.Host.portfwd."""
    try:
        service = relay.Service.connect(relay.AUTO_S)
        if service is None:
            return [], NOT_RUNNING
        with service:
            mappings = service.mappings()
            about = service.ask({"verb": "stats"}).get("service")
    except CniError as error:
        return [], f"no answer: {error}"
    version = about.get("version") if isinstance(about, dict) else ""
    return mappings, f"running {version}".strip()


def relays(mappings: Iterable[Object]) -> Iterator[Relay]:
    """The mappings in the model's form, one for each address of the host that they listen on."""
    for one in mappings:
        state = _object(one.get("state"))
        hosts = _texts(one.get("host_ips"))
        for host in hosts or [""]:
            yield Relay(
                id=_text(one, "id"),
                listen=_listen(one, host),
                target=", ".join(map(_shown, _targets(one))),
                owner=_text(one, "label") or _text(one, "owner"),
                state="waiting" if state.get("waiting") else "listening",
                problem=_problem(state),
                active=_number(state, "active"),
                protocol=_text(one, "protocol"),
                host_address=host,
                first=_number(one, "first"),
                last=_number(one, "last"),
            )


def _listen(one: Object, host: str) -> str:
    first, last = _number(one, "first"), _number(one, "last")
    span = f"{first}-{last}" if last > first else str(first)
    at = f"[{host}]" if ":" in host else host or _text(one, "follow")
    return f"{at}:{span}/{_text(one, 'protocol')}"


def _shown(target: dict[str, Any]) -> str:
    address = _text(target, "address")
    pid = _number(target, "pid")
    place = _text(target, "path") or (f"pid {pid}" if pid else _text(target, "container"))
    at = f"[{address}]" if ":" in address else address
    return f"{at}:{_number(target, 'port')}{f' in {place}' if place else ''}"


def _problem(state: dict[str, Any]) -> str:
    """What the service says is wrong with a mapping, in its words."""
    if state.get("waiting"):
        return str(state["waiting"])
    dead, refused = _texts(state.get("dead_targets")), state.get("refused")
    said = [f"no answer from {', '.join(dead)}"] if dead else []
    said += [f"it does not listen on {', '.join(map(str, refused))}"] if isinstance(refused, dict) and refused else []
    said += [f"{one} gets no clients: they are steered to this mapping" for one in _texts(state.get("unheard"))]
    return "; ".join(said)


def ports(mappings: Iterable[Object], owners: Owners) -> Iterator[Port]:
    """The ports that portfwd listens on. A mapping of portmap's belongs to an attachment."""
    for one in mappings:
        hexed = relay.owner_of(one)
        targets = _targets(one)
        target = targets[0] if targets else {}
        inside = any(target.get(place) for place in PLACES)
        address = _text(target, "address")
        namespace, container_id = _entered(target, owners) if inside else ("", "")
        owner = owners.by_hex.get(hexed) or (NOBODY if inside else owners.by_address.get(address, NOBODY))
        for host in _texts(one.get("host_ips")) if not _object(one.get("state")).get("waiting") else ():
            yield Port(
                protocol=_text(one, "protocol"),
                host_address=host,
                first=_number(one, "first"),
                last=_number(one, "last"),
                target="" if inside else address,
                target_port=_number(target, "port"),
                way="relay",
                source="cni-py" if hexed else "portfwd",
                backend="portfwd",
                network=owner.network,
                container_id=owner.container_id or container_id,
                ifname=owner.ifname,
                allow=tuple(_texts(one.get("allow"))),
                place=f"relay {_text(one, 'id')}",
                namespace=namespace,
                inside=address if inside else "",
            )


def _entered(target: dict[str, Any], owners: Owners) -> tuple[str, str]:
    """The key of the namespace that a mapping enters, and the container in it; "" for each that is not known."""
    named, pid = _text(target, "container"), _number(target, "pid")
    if named:
        found = [(key, one) for key, one in owners.containers.items() if one.startswith(named)]
        return found[0] if len({one for _, one in found}) == 1 else ("", named)
    key = key_at(f"/proc/{pid}/ns/net" if pid else _text(target, "path")) or ""
    return key, owners.containers.get(key, "")


def of_processes(sockets: Iterable[Socket], owners: Owners) -> Iterator[Port]:
    """The ports of the host that other programs than portfwd's service hold for containers."""
    for socket in sockets:
        program = socket.program.split(" ")[0]
        if program in PROXIES:
            yield _proxy(socket, processes.words(socket.pid), owners)
        elif program in CARRIERS:
            yield _carried(socket, CARRIERS[program], program)


def _proxy(socket: Socket, words: list[str], owners: Owners) -> Port:
    """docker-proxy -proto tcp -host-ip 0.0.0.0 -host-port 8080 -container-ip 172.17.0.2 -container-port 80."""
    address, port = _after(words, "-container-ip"), _after(words, "-container-port")
    owner = owners.by_address.get(address, NOBODY)
    target_port = int(port) if port.isascii() and port.isdecimal() else 0
    return _carried(socket, "docker", "docker-proxy", owner, address, target_port)


def _carried(
    socket: Socket, source: Source, backend: str, owner: Owner = NOBODY, target: str = "", target_port: int = 0
) -> Port:
    return Port(
        protocol=socket.protocol,
        host_address=socket.address,
        first=socket.port,
        last=socket.port,
        target=target,
        target_port=target_port,
        way="relay",
        source=source,
        backend=backend,
        network=owner.network,
        container_id=owner.container_id,
        ifname=owner.ifname,
        place=f"pid {socket.pid}",
    )


def _after(words: list[str], option: str) -> str:
    """The value of an option of a Go program."""
    for place, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name in (option, "-" + option):
            return value if equals else "".join(words[place + 1 : place + 2])
    return ""


def _targets(one: Object) -> list[dict[str, Any]]:
    listed = one.get("targets")
    return [dict(each) for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _texts(value: Any) -> list[str]:
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []


def _text(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    return value if isinstance(value, str) else ""


def _number(fields: dict[str, Any], name: str) -> int:
    value = fields.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
