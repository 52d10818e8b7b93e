"""Find the mappings that a person names, by id or by [IP:]PORT[-LAST][/PROTOCOL]. Pure."""

from __future__ import annotations

from collections.abc import Mapping as Object
from collections.abc import Sequence

from portfwd import spec
from portfwd.cli.metrics import as_mapping
from portfwd.errors import NotFound, PortfwdError, Usage
from portfwd.mapping import Mapping

Listing = Sequence[Object[str, object]]  # what the service answers to `list`


def ids(texts: Sequence[str], live: Listing) -> list[str]:
    """The ids of the named mappings, each once. NotFound; Usage for ports that several mappings have."""
    mappings = [mapping for raw in live if (mapping := as_mapping(raw)) is not None]
    known = [str(raw.get("id", "")) for raw in live]
    found = [text if text in known else _by_ports(text, mappings) for text in texts]
    return list(dict.fromkeys(found))


def of_people(live: Listing) -> list[str]:
    """The ids of mappings that no attachment or process owns."""
    return [str(raw.get("id", "")) for raw in live if not raw.get("owner")]


def _by_ports(text: str, live: Sequence[Mapping]) -> str:
    try:
        wanted = _ports(text)
    except PortfwdError:
        raise NotFound(f"there is no mapping {text}", "portfwd ls lists them") from None
    host_ip, ports, protocol = wanted
    sharing = [
        one
        for one in live
        if one.protocol == protocol and ports[0] in one.ports and (host_ip in ("", one.follow, *one.host_ips))
    ]
    same = [one for one in sharing if one.ports == ports]
    if len(same) > 1:
        names = ", ".join(f"{one.id} on {' '.join(one.host_ips)}" for one in same)
        raise Usage(f"several mappings have the ports {text}: give a name", names)
    if same:
        return same[0].id
    raise NotFound(f"there is no mapping of {text}", "; ".join(f"{one.id} is {one}" for one in sharing))


def _ports(text: str) -> tuple[str, range, str]:
    """Host address, or interface or name followed ("" for any), ports and protocol: a SPEC without container port. Usage."""
    ports, slash, protocol = text.partition("/")
    host_ip, colon, last = ports.rpartition(":")
    bracketed = host_ip if host_ip.startswith("[") or ":" not in host_ip else f"[{host_ip}]"
    span = f"{last}:{last}{slash}{protocol}"
    found = spec.parse(f"{bracketed}:{span}" if colon else span)
    if found.host_ports is None:
        raise Usage(f"{text}: no ports")
    return (found.follow or found.host_ips[0]) if colon else "", found.host_ports, found.protocol
