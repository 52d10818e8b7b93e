"""What our plugins made, as traces.py wants it: records, interfaces, nftables' elements, relays; and host-local's files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from cni_py import files
from cni_py.addr import ip_text, mac_text, parse_ip
from cni_py.attachment import engine, gc, records
from cni_py.attachment.context import Kernel
from cni_py.attachment.naming import HEX, Attachment
from cni_py.commands.traces import LAST, THEN, Thing, Traces
from cni_py.errors import CniError
from cni_py.host.attachments import inner_mac
from cni_py.interface.common import AddVeth
from cni_py.ipam import reservations
from cni_py.kernel.nf_tables import BRIDGE, INET, Element
from cni_py.nftables import elements
from cni_py.nftables.policy import ISOLATED
from cni_py.ports import index, leftovers, relay, survey
from cni_py.protocol import cache, conflist, netconf
from cni_py.protocol.gojson import Object
from cni_py.restore import restoration

PORT_SETS = ("any", "specific", "conditional_any", "conditional_specific", "hairpin", "guarded")
OTHER_SETS = (("masquerade4", INET), ("masquerade6", INET), ("spoof_checked", BRIDGE), ("spoof_allowed", BRIDGE))
ELSEWHERE = "another machine has stamped its address, which has another /etc/machine-id"
PROTOCOLS = {6: "tcp", 17: "udp", 132: "sctp"}


def of_records(traces: Traces) -> None:
    """The records, ours."""
    for record in restoration.recorded():
        trace = traces.of(record.key)
        trace.ours = True
        trace.netns, trace.cookie = record.netns or trace.netns, record.container_cookie or trace.cookie
        inode = record.container_file.rpartition(":")[2]
        trace.namespace = f"net:[{inode}]" if inode else trace.namespace
        trace.addresses |= survey.addresses_in(record)
        ops = engine.readable(record.ops)
        trace.host_links += [op.name for op in ops if isinstance(op, AddVeth)]
        trace.macs |= {mac_text(mac) for mac in map(inner_mac, ops) if mac}
        trace.number = max(trace.number, record.number_on(traces.kernel.host_cookie))
        trace.elsewhere |= record.host_cookie not in (0, traces.kernel.host_cookie)
        unfinished = "" if record.done else ", of an ADD that did not end"
        count = f"{len(record.ops)} operation" + "s" * (len(record.ops) != 1)
        what = f"record of {record.plugin} ({count}{unfinished})"
        thing = Thing(what, partial(undo, traces.kernel, trace.hex, record.plugin))
        trace.things.append(thing)
        if not record.done:
            trace.unfinished[record.file] = thing


def of_damaged_records(traces: Traces) -> None:
    """Records that cannot be read: whose they are is said by the name of their folder alone."""
    top = f"{files.run_dir()}/attachments"
    for hexed in files.listed(top):
        names = [name for name in files.listed(f"{top}/{hexed}") if name.endswith(records.SUFFIXES[1:])]
        for name in names if len(hexed) == HEX else ():
            if records.key_in(f"{top}/{hexed}", name.rpartition(".")[0]) is None:
                trace = traces.of(Attachment("", "", ""), hexed)
                trace.ours = True
                what = f"record {name} in the folder {hexed}, which cannot be read"
                trace.things.append(Thing(what, partial(gc.remove, f"{top}/{hexed}/{name}"), LAST))


def undo(kernel: Kernel, hexed: str, plugin: str) -> None:
    """Undo what a record lists, and remove it. CniError."""
    key = records.key_in(f"{files.run_dir()}/attachments/{hexed}", plugin)
    record = records.load(key, plugin) if key is not None else None
    if key is None or record is None:
        return
    within = kernel.of_another(key, record.netns, lambda kernel: record.is_of(kernel) is not False)
    try:
        left = engine.undo_record(record, within)
    finally:
        within.close_container()
    if left:
        raise CniError("; ".join(left))


def of_links(traces: Traces) -> None:
    """Interfaces with our alias."""
    for link in traces.kernel.host.links():
        trace = traces.marked(link.alias)
        if trace is not None and link.kind in ("veth", "ifb", "macvlan"):
            trace.things.append(
                Thing(f"interface {link.name}", partial(delete_link, traces.kernel, link.index, link.alias))
            )


def delete_link(kernel: Kernel, number: int, alias: str) -> None:
    """Delete an interface that still has the alias. OSError."""
    link = kernel.host.link(number)
    if link is not None and link.alias == alias:
        kernel.host.delete_links([number])


def of_elements(traces: Traces) -> None:
    """Elements of our tables. Those of published ports go together: others may be waiting for the ports."""
    names = [f"{name}{family}" for name in PORT_SETS for family in (4, 6)]
    names += [f"range{family}_{protocol}" for family in (4, 6) for protocol in survey.RANGES]
    seen: dict[str, dict[str, None]] = {}
    for name in names:
        for element in dumped(traces, name, INET):
            trace = traces.marked(element.comment)
            if trace is not None:
                trace.addresses |= {text for text in (address_of(name, element),) if text}
                seen.setdefault(trace.hex, {})[port_text(name, element)] = None
    for hexed, texts in seen.items():
        ports = ", ".join(sorted(filter(None, texts)))
        what = f"published ports {ports}" if ports else "nftables elements of published ports"
        traces.found[hexed].things.append(Thing(what, partial(leftovers.withdraw_unrecorded, traces.kernel, hexed)))
    for name, family in (*OTHER_SETS, (ISOLATED, BRIDGE)):
        for element in dumped(traces, name, family):
            trace = traces.marked(element.comment)
            if trace is None:
                continue
            address = ip_text(element.key) if name.startswith("masquerade") else ""
            trace.addresses |= {text for text in (address,) if text}
            remove = partial(elements.sweep_one, traces.kernel, trace.hex, name, family=family)
            trace.things.append(Thing(f"nftables element {address + ' ' if address else ''}of {name}", remove))


def dumped(traces: Traces, name: str, family: int) -> list[Element]:
    """The elements of a set; none if there is no such set."""
    try:
        return traces.kernel.nft.dump(name, family)
    except FileNotFoundError:
        return []


def address_of(name: str, element: Element) -> str:
    """The container's address in an element of a published port; "" if it has none."""
    length = 4 if "4" in name else 16
    value = element.key if name.startswith(("hairpin", "guarded")) else element.value
    return ip_text(value[:length]) if isinstance(value, bytes) and len(value) >= length else ""


def port_text(name: str, element: Element) -> str:
    """8080/tcp, or "20000... (range)": the key ends in protocol and port, each padded to four bytes."""
    if name.startswith("range"):
        return "" if element.end else f"from {int.from_bytes(element.key[:2])}/{name.partition('_')[2]}"
    if name.startswith(("hairpin", "guarded")) or len(element.key) < 8:
        return ""
    protocol, port = element.key[-8], int.from_bytes(element.key[-4:-2])
    return f"{port}/{PROTOCOLS.get(protocol, protocol)}"


def of_relays(traces: Traces) -> None:
    """Mappings of portfwd, if it runs."""
    service = relay.Service.connect(relay.AUTO_S)
    if service is None:
        return
    with service:
        for one in service.mappings():
            hexed = relay.owner_of(one)
            trace = traces.marked(f"{hexed} {one.get('label', '')}") if hexed else None
            if trace is not None:
                trace.addresses |= set(survey.targets_of(one))
                what = f"portfwd's mapping {one.get('id', '')}"
                trace.things.append(Thing(what, partial(relay.forget, hexed)))


def of_index(traces: Traces) -> None:
    """The index of published ports."""
    for one in index.all_holders():
        trace = traces.of(one.key or Attachment("", "", ""), one.hex)
        trace.addresses |= one.addresses
        trace.things.append(Thing("", partial(index.forget, one)))


def directories(conf_dir: Path | None = None) -> Iterator[str]:
    """host-local's directories: of each network below the usual folder, and where a configuration has another dataDir."""
    found = dict.fromkeys(f"{reservations.DATA_DIR}/{name}" for name in files.listed(reservations.DATA_DIR))
    networks = []
    for path in conflist.files(conf_dir or conflist.CONF_DIR):
        with contextlib.suppress(CniError):
            networks.append(conflist.read(path))
    for entry in cache.everything():
        with contextlib.suppress(CniError):
            networks.append(conflist.parse(entry.config, "the cache"))
    for network in networks:
        for plugin in network.members:
            ipam = netconf.child(plugin, "ipam") or Object()
            folder = netconf.string(ipam, "dataDir")
            if folder and "\0" not in folder:
                found[f"{folder.rstrip('/')}/{network.name}"] = None
    yield from (path for path in found if os.path.isdir(path))


def of_reservations(traces: Traces) -> None:
    """host-local's files, ours and the Go plugin's."""
    for directory in directories():
        network = os.path.basename(directory)
        with reservations.Pool(directory, look=True) as pool:
            holders = pool.by_holder()
            strangers = {name for names in holders.values() for name in names if pool.is_of_another_machine(name)}
        for who, names in holders.items():
            key = holder_key(network, who)
            if key is None:
                continue
            trace = traces.of(key)
            trace.stranger = trace.stranger or ELSEWHERE * (not strangers.isdisjoint(names))
            for name in filter(reservations.is_address, names):
                trace.addresses.add(name)
                trace.things.append(Thing(f"address {name}", partial(release, directory, who, name), THEN, ours=False))


def holder_key(network: str, who: bytes) -> Attachment | None:
    """The attachment that a reservation names; None for an operator's, and for what is no reservation."""
    if who.startswith(reservations.OPERATOR):
        return None
    lines = os.fsdecode(who).split("\r\n")
    if len(lines) > 2 or any(line.split() != [line] for line in lines):
        return None
    return Attachment(network, *([*lines, ""])[:2])


def release(directory: str, who: bytes, name: str) -> None:
    """Give an address back, under host-local's lock. CniError."""
    with reservations.Pool(directory) as pool:
        pool.release(who, [name])


def ended(directory: str) -> dict[str, str]:
    """The addresses whose reservations serve nobody, whoever they name, and why. CniError."""
    with reservations.Pool(directory, look=True) as pool:
        found = {name: "it is of an earlier boot of this machine" for name, _, is_over in pool.listed() if is_over}
        empty = [name for name, content, _ in pool.listed() if not content and pool.is_free(parse_ip(name))]
    return dict.fromkeys(empty, "its file is empty: the call that made it was killed") | found


def give_back(directory: str) -> set[str]:
    """Delete those reservations; the addresses that remain reserved. CniError.

    The lock is held: no other call is between making a file and writing into it. With the lock Pool itself deletes what is of an
    earlier boot.
    """
    with reservations.Pool(directory) as pool:
        listed = [(name, content) for name, content, _ in pool.listed()]
        pool.release(b"", [name for name, content in listed if not content and pool.is_free(parse_ip(name))])
        return {name for name, _, _ in pool.listed()}
