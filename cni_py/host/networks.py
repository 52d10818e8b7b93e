"""Networks, as the files of the configuration folders define them, and the pools of their addresses (host-local's directories).

Only files are read; no lock is taken, and no index or stamp written.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cni_py.addr import ip_text, parse_ip
from cni_py.errors import CniError
from cni_py.host.model import Liveness, Network, Pool, Reservation
from cni_py.ipam import ranges, reservations
from cni_py.protocol import conflist, netconf
from cni_py.protocol.conflist import LIST_SUFFIXES
from cni_py.protocol.gojson import Object

# Where runtimes look: containerd, CRI-O, podman and nerdctl by default; k3s and RKE2 have their own.
FOLDERS = (
    conflist.CONF_DIR,
    "/var/lib/rancher/k3s/agent/etc/cni/net.d",
    "/var/lib/rancher/rke2/agent/etc/cni/net.d",
)
HOST_LOCAL = "host-local"
BRIDGE = "cni0"  # the bridge plugin's default
SETS_MAX = 64  # cursors that are looked for
Verdicts = Mapping[tuple[str, str, str], tuple[Liveness, str]]  # by network, containerID and ifname


@dataclass(slots=True)
class Ranges:
    """The directory of a network's reservations, and what its configuration says of it."""

    network: str
    texts: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    sets: int = 0


def networks(folders: Iterable[str] = FOLDERS) -> tuple[list[Network], dict[str, Ranges], list[str]]:
    """The networks; the pools by directory; and sentences on folders that could not be read."""
    found: list[Network] = []
    pools: dict[str, Ranges] = {}
    gaps: list[str] = []
    for folder in folders:
        try:
            files = [file for place in _places(Path(folder)) for file in place]
        except OSError as error:
            gaps.append(f"the networks in {folder} cannot be read: {error.strerror}")
            continue
        found += [_network(file, pools) for file in files]
    return found, pools, gaps


def _places(folder: Path) -> Iterator[list[Path]]:
    """The files of a folder; and of those below it, which nerdctl has for containerd's namespaces, the lists."""
    if not folder.is_dir():
        return
    yield conflist.files(folder)
    for below in sorted(each for each in folder.iterdir() if each.is_dir()):
        yield [file for file in conflist.files(below) if file.suffix in LIST_SUFFIXES]


def _network(file: Path, pools: dict[str, Ranges]) -> Network:
    try:
        listed = conflist.read(file)
    except CniError as error:
        return Network(file.stem, str(file), problem=str(error))
    bridge = ""
    subnets: list[str] = []
    for one in listed.members:
        kind = netconf.string(one, "type")
        if kind == "bridge":
            bridge = bridge or _string(one, "bridge") or BRIDGE
        ipam = _child(one, "ipam")
        if ipam is not None and _string(ipam, "type") == HOST_LOCAL:
            subnets += _pool(listed.name, ipam, pools)
    return Network(
        name=listed.name,
        path=str(file),
        cni_version=listed.cni_version,
        types=tuple(netconf.string(one, "type") for one in listed.members),
        bridge=bridge,
        subnets=tuple(dict.fromkeys(subnets)),
    )


def _string(fields: Object, name: str) -> str:
    value = fields.get(name)
    return value if isinstance(value, str) else ""


def _child(fields: Object, name: str) -> Object | None:
    value = fields.get(name)
    return value if isinstance(value, Object) else None


def _pool(network: str, ipam: Object, pools: dict[str, Ranges]) -> list[str]:
    """The subnets of a host-local configuration; its ranges go to `pools`. None for one that the plugin would refuse."""
    try:
        sets = ranges.parse_sets(ipam, Object())
    except (CniError, ValueError):
        sets = []
    folder = f"{_string(ipam, 'dataDir') or reservations.DATA_DIR}/{network}"
    pool = pools.setdefault(folder, Ranges(network))
    pool.sets = max(pool.sets, len(sets))
    for one in [each for each_set in sets for each in each_set]:
        if str(one) not in pool.texts:
            pool.texts.append(str(one))
            pool.sizes.append(size(one))
    return [str(one.subnet) for each_set in sets for one in each_set]


def size(one: ranges.Range) -> int:
    """How many addresses a range gives out: without the excluded and the gateway."""
    count = one.end - one.start + 1
    gateway = one.gateway if one.contains(one.gateway) else b""
    for block in one.excluded:
        first, last = max(block.first, one.start), min(block.last, one.end)
        count -= max(0, last - first + 1)
        if gateway and block.first <= int.from_bytes(gateway, "big") <= block.last:
            gateway = b""
    return count - bool(gateway)


def pools(known: Mapping[str, Ranges], live: Verdicts) -> tuple[list[Pool], list[str]]:
    """The pools of the known networks, and those of which only the directory is left. `live`: see reservation()."""
    folders = dict(known)
    gaps: list[str] = []
    try:
        for name in sorted(os.listdir(reservations.DATA_DIR)):
            folder = f"{reservations.DATA_DIR}/{name}"
            if os.path.isdir(folder):
                folders.setdefault(folder, Ranges(name))
    except FileNotFoundError:
        pass
    except OSError as error:
        gaps.append(f"the reservations in {reservations.DATA_DIR} cannot be read: {error.strerror}")
    found = []
    for folder, one in folders.items():
        try:
            found.append(_read(folder, one, live))
        except (OSError, CniError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            gaps.append(f"the reservations in {folder} cannot be read: {why}")
    return sorted(found, key=lambda pool: pool.network), gaps


def _read(folder: str, one: Ranges, live: Verdicts) -> Pool:
    with reservations.Pool(folder, look=True) as pool:
        listed = [_reservation(folder, one.network, *entry, live) for entry in pool.listed()]
        cursors = [pool.cursor(number) for number in range(min(one.sets or 2, SETS_MAX))]
    return Pool(
        network=one.network,
        folder=folder,
        ranges=tuple(one.texts),
        sizes=tuple(one.sizes),
        size=sum(one.sizes),
        reservations=tuple(sorted(listed, key=lambda each: packed_key(each.address))),
        last=tuple(ip_text(cursor) for cursor in cursors if cursor is not None),
    )


def packed_key(address: str) -> tuple[int, bytes]:
    """What orders addresses: IPv4 first, by number."""
    packed = parse_ip(address)
    return len(packed), packed


def _reservation(
    folder: str,
    network: str,
    address: str,
    content: bytes,
    is_over: bool,
    live: Verdicts,
) -> Reservation:
    """A file of host-local's. It is as alive as the attachment that it names; one of an earlier boot is dead."""
    container_id, _, ifname = content.decode("utf-8", "replace").partition("\r\n")
    since, is_empty = 0.0, False
    with contextlib.suppress(OSError):
        status = os.stat(f"{folder}/{address}", follow_symlinks=False)
        since, is_empty = status.st_mtime, stat.S_ISREG(status.st_mode) and status.st_size == 0
    verdict: tuple[Liveness, str] = live.get(
        (network, container_id, ifname), ("unknown", "no attachment is known that has it")
    )
    if is_over:
        verdict = ("dead", "it is of an earlier boot of this machine")
    if content.startswith(reservations.OPERATOR):
        container_id, ifname, verdict = content.decode("utf-8", "replace"), "", ("alive", "an operator reserved it")
    if not content:
        verdict = ("unknown", "its file is not one of host-local's, and keeps the address from containers")
    if is_empty:
        verdict = ("dead", "the file is empty: the call that made it was killed")
    return Reservation(address, container_id, ifname, since, *verdict)
