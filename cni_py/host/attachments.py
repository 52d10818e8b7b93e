"""What CNI plugins connected: our records and libcni's cache, read; then completed by what the namespaces show.

Nothing is locked.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cni_py import files
from cni_py.addr import mac_text
from cni_py.attachment import gc, records
from cni_py.attachment.engine import Op, op_from_json
from cni_py.attachment.naming import HEX
from cni_py.attachment.naming import Attachment as Key
from cni_py.errors import CniError
from cni_py.host import spaces
from cni_py.host.findings import RECORDS
from cni_py.host.liveness import WHOLE, Claim, View, judge, owned, space_of
from cni_py.host.model import Attachment, Link, Namespace, Operation, Source
from cni_py.kernel import processes
from cni_py.kernel.rtnl import Rtnl
from cni_py.protocol import cache, conflist, netconf
from cni_py.protocol.gojson import Object
from cni_py.run import MODULES

PREFIXES = ("veth", "bwp")  # how the names of the host's links begin in the Go plugins' results
HOST_OPERATIONS = ("AddVeth", "AddIfb")


@dataclass(slots=True)
class Given:
    """An attachment as files tell it."""

    key: Key
    netns: str = ""
    cookie: int = 0  # of the namespace, as the record has it; 0 when it is not known
    file: str = ""  # device:inode of it
    plugins: list[str] = field(default_factory=list)
    unfinished: bool = False
    damage: str = ""
    operations: list[Operation] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)
    host_links: list[str] = field(default_factory=list)
    macs: set[str] = field(default_factory=set)  # of the interface in the container
    source: Source = "cni-py"
    since: float = 0.0
    number: int = -1  # see Claim
    whole: bool = False


def read(results: Path = cache.RESULTS_DIR) -> tuple[list[Given], list[str]]:
    """Every attachment that a record or the cache names, and sentences on what could not be read."""
    gaps: list[str] = []
    found: dict[str, Given] = {}
    top = f"{files.run_dir()}/attachments"
    host = _own_cookie()
    try:
        folders = sorted(os.listdir(top))
    except (FileNotFoundError, NotADirectoryError):
        folders = []
    except OSError as error:
        gaps.append(f"{RECORDS} in {top} cannot be read: {error.strerror}")
        folders = []
    for name in folders:
        given = _of_folder(f"{top}/{name}", host)
        if given is not None:
            found[given.key.hex] = given
        gaps += _damage(f"{top}/{name}", given)
    try:
        entries = cache.everything(results)
    except OSError as error:
        gaps.append(f"libcni's cache in {results} cannot be read: {error.strerror}")
        entries = []
    for entry in entries:
        key = Key(*entry.key)
        _add_cached(found.setdefault(key.hex, Given(key, source="")), entry, results)
    return list(found.values()), gaps


def _damage(folder: str, given: Given | None) -> list[str]:
    """What a damaged record would tell is not known: it may name ports."""
    if given is not None:
        return [f"{RECORDS} of {given.key.label} cannot all be read: {given.damage}"] if given.damage else []
    there = any(name.endswith(records.SUFFIXES[1:]) for name in files.listed(folder))
    return [f"{RECORDS} in {folder} cannot be read: none says whose it is"] if there else []


def _own_cookie() -> int:
    """Of the host's namespace, which is that of this thread."""
    side = Rtnl()
    try:
        return side.cookie
    finally:
        side.close()


def _of_folder(folder: str, host_cookie: int) -> Given | None:
    """The attachment whose records are in a folder; None when no record says whose it is."""
    names = files.listed(folder)
    kinds = sorted({name.partition(".")[0] for name in names if name.endswith(records.SUFFIXES[1:])})
    key = next((one for kind in kinds if (one := records.key_in(folder, kind)) is not None), None)
    if key is None:
        return None
    given = Given(key)
    for kind in kinds:
        record = records.own(key, kind)
        if record is None:
            continue
        given.netns = given.netns or record.netns
        given.cookie = given.cookie or record.container_cookie
        given.file = given.file or record.container_file
        given.number = max(given.number, record.number_on(host_cookie))
        given.unfinished |= not record.done
        given.damage = given.damage or record.damage
        given.since = max(given.since, _time(f"{record.path}{'.json' if record.done else '.adding'}"))
        for entry in record.ops:
            _add_operation(given, records.part_of(entry) or kind, entry)
        if not record.ops and kind not in given.plugins:
            given.plugins.append(kind)
    return given


def _add_operation(given: Given, plugin: str, entry: object) -> None:
    if plugin not in given.plugins:
        given.plugins.append(plugin)
    try:
        operation: Op = op_from_json(entry)
        text = operation.describe()
    except (ValueError, LookupError) as error:
        given.operations.append(Operation(plugin, f"damaged: {error}"))
        return
    given.operations.append(Operation(plugin, text, json.dumps(operation.to_json())))
    name = getattr(operation, "name", "")
    if type(operation).__name__ in HOST_OPERATIONS and name:
        given.host_links.append(name)
    given.macs |= {mac_text(mac) for mac in (inner_mac(operation),) if mac}


def inner_mac(operation: Op) -> bytes:
    """The MAC address of the interface in the container that an operation makes; empty where it makes none, or tells none."""
    mac = getattr(operation, "container_mac", b"") or (operation.whole and getattr(operation, "mac", b""))
    return mac if isinstance(mac, bytes) else b""


def _time(path: str) -> float:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0


def _add_cached(given: Given, entry: cache.Entry, folder: Path) -> None:
    """What an entry of the cache adds to what records say."""
    with contextlib.suppress(CniError):  # a result that is none
        given.netns = given.netns or entry.known_netns
    given.since = given.since or _time(str(entry.path(folder)))
    try:
        types = [netconf.string(one, "type") for one in conflist.parse(entry.config, "").members]
    except CniError:
        types = []
    given.whole = not WHOLE.isdisjoint(types)
    given.plugins += [name for name in dict.fromkeys(types) if name not in given.plugins]
    if not given.source:
        given.source = "go" if all(name in MODULES for name in types) else "other"
    given.addresses += [text for text in _addresses(entry) if text not in given.addresses]
    for link in _interfaces(entry):
        _add_interface(given, _text(link, "name"), bool(_text(link, "sandbox")), _text(link, "mac"))


def _add_interface(given: Given, name: str, inside: bool, mac: str) -> None:
    if inside and name == given.key.ifname and mac:
        given.macs.add(mac)
    elif not inside and name.startswith(PREFIXES) and name not in given.host_links:
        given.host_links.append(name)


def _interfaces(entry: cache.Entry) -> list[Object]:
    try:
        return netconf.objects(entry.result or Object(), "interfaces")
    except CniError:
        return []


def _addresses(entry: cache.Entry) -> list[str]:
    """The addresses of the container's interface, with prefix length, in the result of whatever version."""
    result = entry.result or Object()
    interfaces = _interfaces(entry)
    found = [_text(part, "ip") for part in (result.get("ip4"), result.get("ip6")) if isinstance(part, Object)]
    try:
        listed = netconf.objects(result, "ips")
    except CniError:
        listed = []
    for one in listed:
        number = one.get("interface")
        link = interfaces[number] if isinstance(number, int) and 0 <= number < len(interfaces) else None
        if link is None or (_text(link, "name") == entry.ifname and _text(link, "sandbox")):
            found.append(_text(one, "address"))
    return [text for text in found if text]


def _text(value: Object, name: str) -> str:
    found = value.get(name)
    return found if isinstance(found, str) else ""


def busy() -> set[str]:
    """The attachments (their hex) that a call holds the lock of, by /proc/locks (proc_locks(5)): no lock is tried."""
    held = {line.split()[5] for line in processes.read("/proc/locks").splitlines() if len(line.split()) > 5}
    found = set()
    for name in files.listed(f"{files.run_dir()}/lock"):
        if not name.startswith(gc.LOCK_PREFIX):
            continue
        try:
            status = os.stat(files.lock_path(name))
        except OSError:
            continue
        device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
        if f"{device}:{status.st_ino}" in held:
            found.add(name.removeprefix(gc.LOCK_PREFIX)[:HEX])
    return found


def claim(given: Given, *, aliased: bool, busy: bool) -> Claim:
    """The attachment as liveness.judge() wants it."""
    return Claim(
        container_id=given.key.container_id,
        ifname=given.key.ifname,
        hex=given.key.hex,
        netns=given.netns,
        leads_to=spaces.leads_to(given.netns),
        cookie=given.cookie,
        key=f"net:[{given.file.partition(':')[2]}]" if given.file else "",
        macs=frozenset(given.macs),
        addresses=frozenset(text.partition("/")[0] for text in given.addresses),
        host_links=tuple(given.host_links),
        ours=aliased or given.source == "cni-py",
        busy=busy,
        number=given.number,
        whole=given.whole,
        here=aliased or given.source == "cni-py",
    )


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What attachments are completed with: the host's links by name, index and mark; the containers' namespaces by key."""

    host: str  # key of its namespace
    by_name: dict[str, Link]
    by_index: dict[int, Link]
    by_hex: dict[str, list[Link]]
    namespaces: dict[str, Namespace]
    view: View
    busy: set[str]


def complete(
    given: Iterable[Given], namespaces: Sequence[Namespace], view: View, working: set[str]
) -> list[Attachment]:
    """The attachments of the model, by network and container. The first namespace is the host's. `working`: see busy()."""
    host = namespaces[0]
    by_hex: dict[str, list[Link]] = {}
    for link in host.links:
        by_hex.setdefault(records.attachment_in(link.alias)[0], []).append(link)
    around = Surroundings(
        host.key,
        {link.name: link for link in host.links},
        {link.index: link for link in host.links},
        by_hex,
        {one.key: one for one in namespaces[1:]},
        view,
        working,
    )
    listed = [(one, _claim(one, around)) for one in given]
    around = replace(around, view=replace(view, owned=owned([asked for _, asked in listed], view.census)))
    found = [_complete(one, asked, around) for one, asked in listed]
    return sorted(found, key=lambda one: (one.network, one.container_id, one.ifname))


def _claim(given: Given, around: Surroundings) -> Claim:
    hexed = given.key.hex
    return claim(given, aliased=hexed in around.by_hex, busy=hexed in around.busy)


def _complete(given: Given, asked: Claim, around: Surroundings) -> Attachment:
    aliased = around.by_hex.get(given.key.hex, [])
    live, reason = judge(asked, around.view)
    # Not what the path leads to: that may be another's namespace by now
    space = space_of(asked, around.view)
    namespace = around.namespaces.get(space.key) if space is not None else None
    inside = next((link for link in namespace.links if link.name == given.key.ifname), None) if namespace else None
    names = [*given.host_links, *(link.name for link in aliased)]
    if inside is not None and inside.kind == "veth" and inside.peer_namespace == around.host:
        outer = around.by_index.get(inside.peer_index)
        names = [outer.name, *names] if outer is not None else names
    ends = [around.by_name[name] for name in names if name in around.by_name]
    shown = [f"{one.address}/{one.prefix}" for one in inside.addresses if one.scope == "global"] if inside else []
    return Attachment(
        network=given.key.network,
        container_id=given.key.container_id,
        ifname=given.key.ifname,
        hex=given.key.hex,
        netns=given.netns,
        namespace=namespace.key if namespace else "",
        live=live,
        reason="" if live == "alive" else reason,
        plugins=tuple(given.plugins),
        unfinished=given.unfinished,
        addresses=tuple(given.addresses or shown),
        host_links=tuple(dict.fromkeys(names)),
        bridge=next((link.master for link in ends if link.master), ""),
        operations=tuple(given.operations),
        source="cni-py" if aliased else given.source,
        since=given.since,
    )
