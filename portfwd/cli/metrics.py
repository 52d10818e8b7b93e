"""The output of `portfwd ls` and `portfwd stats`: tables for people, and Prometheus' text format. Pure.

The input is the service's answers to `list` and `stats`: JSON of a service of any version, in which any field may be missing.

Source: https://prometheus.io/docs/instrumenting/exposition_formats/ (text format 0.0.4).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from portfwd import follow
from portfwd.errors import PortfwdError
from portfwd.mapping import Mapping as PortMapping
from portfwd.mapping import span

Row = Mapping[str, object]  # what the service says of one mapping, or of itself

COUNTERS = {  # name among the counters: (metric, type, help)
    "connections": ("portfwd_connections_total", "counter", "TCP connections accepted, or UDP flows begun."),
    "active": ("portfwd_connections_active", "gauge", "TCP connections or UDP flows at present."),
    "refused": (
        "portfwd_connections_refused_total",
        "counter",
        "Clients refused by the allow list or a limit, or since their target leads back here.",
    ),
    "limited": ("portfwd_connections_limited_total", "counter", "The refused clients that a limit kept out."),
    "loops": ("portfwd_loops_total", "counter", "Connections and datagrams that came back from this service itself."),
    "evicted": ("portfwd_flows_evicted_total", "counter", "UDP flows ended early to make room for newer ones."),
    "starved": ("portfwd_descriptor_shortages_total", "counter", "How often no descriptor was left for a client."),
    "failed": ("portfwd_connections_failed_total", "counter", "Connections for which no target could be reached."),
    "errors": ("portfwd_errors_total", "counter", "Connections cut by a reset, a time limit or an error."),
    "bytes_in": ("portfwd_received_bytes_total", "counter", "Bytes from clients to targets."),
    "bytes_out": ("portfwd_sent_bytes_total", "counter", "Bytes from targets to clients."),
    "spliced": (
        "portfwd_spliced_bytes_total",
        "counter",
        "The bytes of both directions that splice(2) moved inside the kernel.",
    ),
    "dropped": ("portfwd_datagrams_dropped_total", "counter", "UDP datagrams that were not relayed."),
}
DEAD = ("portfwd_targets_dead", "gauge", "Targets that did not answer, and are tried last for now.")
INFO = ("portfwd_mapping_info", "gauge", "Always 1; the labels describe the mapping.")
MAPPINGS = ("portfwd_mappings", "gauge", "Number of mappings.")
SERVICE = ("portfwd_service_info", "gauge", "Always 1; the label is the version of the service.")
STARTED = ("portfwd_start_time_seconds", "gauge", "Start time of the service, in seconds since 1970 (UTC).")

PEOPLE = "-"  # as the owner of a person's mapping, and for an empty cell
UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")

Metric = tuple[str, str, str]


def prometheus(service: Row, mappings: Sequence[Row]) -> str:
    """The metrics of the service (from `stats`) and its mappings (from `list`, with their state)."""
    lines: list[str] = []
    lines += _metric(SERVICE, [({"version": str(service["version"])}, 1)] if "version" in service else [])
    started = service.get("started")
    lines += _metric(STARTED, [({}, started)] if _is_number(started) else [])
    lines += _metric(MAPPINGS, [({}, len(mappings))])
    lines += _metric(INFO, [(_labels(raw), 1) for raw in mappings])
    for name, metric in COUNTERS.items():
        values = ((_name(raw), state(raw).get(name)) for raw in mappings)
        lines += _metric(metric, [({"mapping": label}, value) for label, value in values if _is_number(value)])
    lines += _metric(DEAD, [({"mapping": _name(raw)}, len(_dead(raw))) for raw in mappings])
    return "".join(line + "\n" for line in lines)


def _metric(metric: Metric, samples: Sequence[tuple[Mapping[str, str], object]]) -> Iterator[str]:
    """The lines of a metric; none without samples."""
    name, kind, text = metric
    if samples:
        yield f"# HELP {name} {text}"
        yield f"# TYPE {name} {kind}"
    for labels, value in samples:
        inside = ",".join(f'{label}="{escape(text)}"' for label, text in labels.items())
        yield f"{name}{{{inside}}} {value}" if inside else f"{name} {value}"


def escape(text: str) -> str:
    """A text as the value of a label."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _labels(raw: Row) -> dict[str, str]:
    mapping = shown(raw)
    if mapping is None:
        return {"mapping": _name(raw)}
    return {
        "mapping": mapping.id,
        "protocol": mapping.protocol,
        "host": ",".join(mapping.host_ips),
        "ports": span(mapping.first, mapping.last),
        "targets": ",".join(map(str, mapping.targets)),
        "owner": mapping.owner,
        "label": mapping.label,
    }


def as_mapping(raw: Row) -> PortMapping | None:
    """The mapping without its state; None for one of a later version, with unknown fields."""
    try:
        return PortMapping.from_json({name: value for name, value in raw.items() if name != "state"})
    except PortfwdError:
        return None


def shown(raw: Row) -> PortMapping | None:
    """The same without the addresses that no client can reach: [::] where IPv6 is off."""
    mapping, left_out = as_mapping(raw), state(raw).get("left_out")
    return mapping.without(left_out) if mapping is not None and isinstance(left_out, list) else mapping


def _name(raw: Row) -> str:
    return str(raw.get("id", ""))


def state(raw: Row) -> Row:
    """The state of a mapping, counters included."""
    found = raw.get("state")
    return found if isinstance(found, dict) else {}


def _dead(raw: Row) -> list[str]:
    found = state(raw).get("dead_targets")
    return list(map(str, found)) if isinstance(found, list) else []


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def ls(mappings: Sequence[Row]) -> str:
    """A table with a line for each mapping: its ports, addresses, targets, present clients, way of serving and owner."""
    rows = [("NAME", "PORTS", "HOST", "TO", "ACTIVE", "SERVED BY", "OWNER")]
    for raw in mappings:
        mapping = shown(raw)
        active = "waiting" if state(raw).get("waiting") else str(state(raw).get("active", "?"))
        if mapping is None:
            rows.append((_name(raw), "?", "?", "?", active, "?", "?"))
            continue
        owner = mapping.label or mapping.owner or PEOPLE
        rows.append((mapping.id, mapping.span, _hosts(raw, mapping), _targets(raw, mapping), active, _way(raw), owner))
    return table(rows, right={4})


def _hosts(raw: Row, mapping: PortMapping) -> str:
    """The addresses listened on; for an interface or a name also those that cannot be had now."""
    ips = " ".join(mapping.host_ips)
    if not mapping.follow:
        return ips
    refused = state(raw).get("refused")
    lacking = f" (not {' '.join(map(str, refused))})" if isinstance(refused, dict) and refused else ""
    return f"{follow.shown(mapping.follow)}: {ips or PEOPLE}{lacking}"


def unheard(mappings: Sequence[Row]) -> list[str]:
    """A sentence for each program that listens on a steered port, and gets no clients."""
    found: list[str] = []
    for raw in mappings:
        said = state(raw).get("unheard")
        texts = said if isinstance(said, list) else []
        found += [f"port {text} gets no clients: they are steered to mapping {_name(raw)}" for text in texts]
    return found


def _way(raw: Row) -> str:
    """How the ports are served, and how they would be without steering, or why they are not steered."""
    found = state(raw)
    way = str(found.get("served_by", PEOPLE))
    if "otherwise" in found:
        return f"{way} (otherwise {found['otherwise']})"
    return f"{way} ({found['no_sk_lookup']})" if "no_sk_lookup" in found else way


def _targets(raw: Row, mapping: PortMapping) -> str:
    dead = _dead(raw)
    return ", ".join(f"{target} (no answer)" if str(target) in dead else str(target) for target in mapping.targets)


def stats(service: Row, mappings: Sequence[Row]) -> str:
    """A table with the counters of each mapping, and a line on the service."""
    heads = ("NAME", "ACTIVE", "TOTAL", "REFUSED", "FAILED", "ERRORS", "DROPPED", "IN", "OUT", "IN KERNEL", "EVICTED")
    rows: list[Sequence[str]] = [heads]
    for raw in mappings:
        counted = state(raw)
        names = ("active", "connections", "refused", "failed", "errors", "dropped")
        numbers = [str(counted.get(name, "?")) for name in names]
        moved = [_number(counted, name) for name in ("bytes_in", "bytes_out", "spliced")]
        shares = (size(moved[0]), size(moved[1]), _share(moved[2], moved[0] + moved[1]))
        rows.append((_name(raw), *numbers, *shares, str(counted.get("evicted", "?"))))
    return table(rows, right=set(range(1, len(heads)))) + _service(service)


def _service(service: Row) -> str:
    if "pid" not in service:
        return ""
    return f"portfwd {service.get('version', '?')}, pid {service['pid']}\n"


def _number(raw: Row, name: str) -> float:
    value = raw.get(name)
    return value if isinstance(value, int | float) else 0


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.0f}%" if whole else PEOPLE


def size(count: float) -> str:
    """Bytes for people: 999 B, 1.5 MB."""
    value = float(count)
    for unit in UNITS:
        if value < 999.5 or unit == UNITS[-1]:
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" or value >= 99.95 else f"{value:.1f} {unit}"


def table(rows: Sequence[Sequence[str]], right: Iterable[int] = ()) -> str:
    """Columns two spaces apart; those in `right` are right-aligned. Unprintable characters become "?"."""
    clean = [["".join(char if char.isprintable() else "?" for char in cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*clean, strict=True)]
    aligned = set(right)
    lines = []
    for row in clean:
        cells = [
            cell.rjust(width) if place in aligned else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip() + "\n")
    return "".join(lines)
