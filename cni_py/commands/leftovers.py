"""What remains after `cni-py uninstall`, since running containers may need it, and how `--purge` removes it.

connected containers     listed by the attachment records; --purge --force disconnects them
bridge cni-py0           removed; the bridges of other networks are not
our nftables tables, /run/cni-py, /var/lib/cni-py      shared by all networks: removed if no other network has a container
addresses and results of our network below /var/lib/cni     removed
forwarding               switched off if it was off at the first install and no other bridge or tunnel needs it
"""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shlex import quote

from cni_py import files, run
from cni_py.attachment import holders
from cni_py.attachment.call import Call
from cni_py.commands import default_network, overlaps
from cni_py.commands.launchers import launcher
from cni_py.commands.report import complain
from cni_py.errors import CniError
from cni_py.kernel import libnftables, sysctl, xtables
from cni_py.kernel.nf_tables import TABLE, Nft
from cni_py.kernel.rtnl import Link, Rtnl
from cni_py.nftables.completeness import FAMILIES
from cni_py.nftables.ruleset import has_table
from cni_py.protocol import cache, conflist, netconf
from cni_py.protocol.conflist import Network
from cni_py.protocol.gojson import Object
from cni_py.protocol.netconf import NetConf
from cni_py.restore import restoration

STATE_DIR = Path("/var/lib/cni-py")
NETWORKS_DIR = Path("/var/lib/cni/networks")  # host-local's, unless dataDir says otherwise
SETTINGS = Path("/etc/cni-py/config.yaml")
FORWARDING = ("ipv4/ip_forward", "ipv6/conf/all/forwarding")  # below /proc/sys/net
FORWARDERS = ("bridge", "tun", "wireguard", "vxlan", "geneve", "gre", "ppp", "ipvlan", "macvlan", "vrf")
SHARED_CHAINS = "CNI-HOSTPORT-"  # prefix of their names
ENDING_S = 5.0  # for namespaces that have lost their names, all together
TOOL_S = 20.0  # iptables-save of a large table
NAMED_MAX = 3  # attachments in a sentence
PORTFWD = "portfwd"  # prefix of its files in the shared folders

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Left:
    """Something that remains: its name, the command that removes it, and how `--purge` does. `kept`: why it must stay, or ""."""

    what: str
    command: str
    remove: Callable[[], object]
    kept: str = ""


def connected() -> list[str]:
    """The attachments whose container still exists, each as "network/containerID/ifname". None without root.

    A namespace that has lost its name may be about to end: the kernel ends one after the other.
    """
    if os.geteuid() != 0:
        return []
    end = time.monotonic() + ENDING_S
    alive = [record for record in restoration.recorded() if not holders.is_dead(record, end - time.monotonic())]
    return list(dict.fromkeys(record.key.label for record in alive))


def foreign(network: Network) -> list[str]:
    """The attachments of other networks that have a record, whether the container exists or not."""
    found = (record.key for record in restoration.recorded())
    return list(dict.fromkeys(key.label for key in found if key.network != network.name))


def network_of(path: Path | None) -> Network:
    """Our network from its file; as `install` writes it, if there is no file or it now holds another network."""
    if path is not None:
        with contextlib.suppress(CniError):
            found = conflist.read(path)
            if found.name == default_network.NAME:
                return found
    return conflist.parse(default_network.text(ipv6=True), default_network.FILE)


def everything(network: Network, off: list[str]) -> list[Left]:
    """Everything that remains, in the order in which it can be removed. `off`: the sysctls that were off at the first install."""
    if os.geteuid() != 0:
        return []
    others = foreign(network)
    more = ", ..." if len(others) > NAMED_MAX else ""
    kept = f"other networks use it ({', '.join(others[:NAMED_MAX])}{more})" if others else ""
    busy = kept or ("portfwd is running" if publisher_runs() else "")
    return [
        *bridges(network),
        *tables(kept),
        *iptables_chains(),
        *folders(network, kept, busy),
        *forwarding(off, overlaps.bridges(network), kept),
    ]


def bridges(network: Network) -> Iterator[Left]:
    """The bridges of the network. They are kept while they have ports, or if `install` did not choose the name."""
    for name in sorted(overlaps.bridges(network)):
        found, ports = bridge_named(name)
        if found:
            kept = f"it has ports ({', '.join(ports)})" if ports else ""
            if name != default_network.BRIDGE:  # the operator changed the file
                kept = kept or "it may be older than the installation"
            yield Left(f"bridge {name}", f"ip link delete {quote(name)}", partial(delete_link, name), kept)


def bridge_named(name: str) -> tuple[bool, list[str]]:
    """Whether there is a bridge of that name, and the names of its ports."""
    with closing(Rtnl()) as host:
        found = host.link(name)
        if found is None or found.kind != "bridge":
            return False, []
        return True, [link.name for link in host.links(found.index)]


def delete_link(name: str) -> None:
    with closing(Rtnl()) as host:
        host.delete_link(name)


def tables(kept: str) -> Iterator[Left]:
    """Our nftables tables."""
    with closing(Nft()) as nft:
        for family, name in FAMILIES.items():
            with contextlib.suppress(CniError, OSError):  # no nf_tables, or not for bridges: nothing of ours is there
                if has_table(nft, family):
                    command = f"delete table {name} {TABLE}"
                    what = f"nftables table {name} {TABLE}"
                    yield Left(what, f"nft {command}", partial(libnftables.run, command), kept)


def iptables_chains() -> Iterator[Left]:
    """The chains that all published ports share with `backend: iptables`. Never purged: the Go plugins have the same ones."""
    with closing(Nft()) as nft:
        for family, tool in ((4, "iptables"), (6, "ip6tables")):
            with contextlib.suppress(CniError, OSError, subprocess.SubprocessError):  # no iptables: none of its chains
                if not xtables.may_hold(nft, family, xtables.NAT, "PREROUTING"):
                    continue
                save = [f"{tool}-save", "-t", xtables.NAT]
                listed = subprocess.run(save, capture_output=True, timeout=TOOL_S, check=True).stdout
                if f":{SHARED_CHAINS}".encode() in listed:
                    command = f"{tool}-save -t nat | grep -v {SHARED_CHAINS} | {tool}-restore -T nat"
                    what = f"{tool} chains {SHARED_CHAINS}*"
                    yield Left(what, command, lambda: None, "the Go plugins use chains of these names")


def folders(network: Network, kept: str, busy: str) -> Iterator[Left]:
    """The folders of records and of portfwd, and our network's addresses and results."""
    run_dir = Path(files.run_dir())
    for path, why in ((run_dir, kept), (STATE_DIR, busy)):
        if path.is_dir() and any(path.iterdir()):
            yield Left(str(path), f"rm -r {quote(str(path))}", partial(remove_folder, path, busy), why)
    ipam = [plugin.get("ipam") for plugin in network.members]
    stated = [netconf.string(entry, "dataDir") for entry in ipam if isinstance(entry, Object)]
    addresses = Path(next(filter(None, stated), str(NETWORKS_DIR))) / network.name
    if addresses.is_dir():
        yield Left(str(addresses), f"rm -r {quote(str(addresses))}", partial(remove_folder, addresses))
    results = [entry.path(cache.RESULTS_DIR) for entry in cache.everything() if entry.network == network.name]
    for path in results:
        yield Left(str(path), f"rm {quote(str(path))}", partial(remove_file, path))
    if SETTINGS.exists():
        yield Left(str(SETTINGS), f"rm {SETTINGS}", partial(remove_file, SETTINGS), "somebody else wrote it")


def forwarding(off: list[str], own: set[str], kept: str) -> Iterator[Left]:
    """The sysctls of forwarding that are on; kept unless they were off at the first install and nobody else needs them."""
    for key in FORWARDING:
        try:
            if sysctl.read(key) != "1":
                continue
        except OSError:
            continue
        name = f"net.{key.replace('/', '.')}"
        why = kept or ("" if key in off else "it may have been on before the installation") or forwarder(own)
        yield Left(f"{name} = 1", f"sysctl -w {name}=0", partial(sysctl.write, key, "0"), why)


def forwarder(own: set[str]) -> str:
    """Why forwarding must stay on; "" if no interface but those in `own` seems to need it."""
    with closing(Rtnl()) as host:
        needing = [link.name for link in host.links() if needs_forwarding(link) and link.name not in own]
    return f"{', '.join(needing)} may need it" if needing else ""


def needs_forwarding(link: Link) -> bool:
    return link.up and link.kind in FORWARDERS


def publisher_runs() -> bool:
    """Whether portfwd's service runs: its control socket accepts connections."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(f"{files.run_dir()}/{PORTFWD}.sock")
        except OSError:
            return False
    return True


def remove_folder(path: Path, busy: str = "") -> None:
    """Remove a folder of ours. If portfwd runs (`busy`), its files in it stay."""
    for entry in path.iterdir():
        if busy and entry.name.startswith(PORTFWD):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    with contextlib.suppress(OSError):  # it is a mount point, or not empty
        path.rmdir()


def remove_file(path: Path) -> None:
    path.unlink(missing_ok=True)


def remove_empty(path: Path) -> None:
    """Remove a folder and its parent if they are empty."""
    with contextlib.suppress(OSError):
        path.rmdir()
        path.parent.rmdir()


def tell(left: list[Left], say: Say) -> None:
    """List what remains, each with the command that removes it."""
    if left:
        say(
            "These remain, since containers or other programs may use them; `cni-py uninstall --purge` removes what is ours:"
        )
    width = max((len(one.what) for one in left), default=0)
    for one in left:
        say(f"  {one.what:<{width}}  {one.command}" + (f"  # {one.kept}" if one.kept else ""))


def purge(network: Network, off: list[str], say: Say, *, dry_run: bool) -> bool:
    """Remove what is ours, and name what must stay. False if something could not be removed."""
    clean = dry_run or disconnect_all(network, say)
    for one in everything(network, off):
        if one.kept:
            say(
                f"leave {one.what}: {one.kept}; `{one.command}` "
                + ("removes it" if " = " not in one.what else "resets it")
            )
            continue
        say(
            f"remove {one.what}"
            if " = " not in one.what
            else f"set {one.what.replace(' = 1', ' = 0')}, as it was before"
        )
        try:
            if not dry_run:
                one.remove()
        except (CniError, OSError) as error:
            complain(f"cni-py uninstall: cannot remove {one.what}: {error}")
            clean = False
    if not dry_run:
        for folder in (NETWORKS_DIR, cache.RESULTS_DIR):
            remove_empty(folder)
    return clean


def disconnect_all(network: Network, say: Say) -> bool:
    """Undo every attachment of our network, also those whose container is gone. False if a plugin failed.

    Every plugin runs GC in this process with an empty list of valid attachments. A plugin finds its delegates (IPAM) by name in
    CNI_PATH, but the installed launchers are gone by now, so a temporary folder has launchers.
    """
    clean = True
    for label in dict.fromkeys(
        record.key.label for record in restoration.recorded() if record.key.network == network.name
    ):
        say(f"disconnect {label}")
    with tempfile.TemporaryDirectory(prefix="cni-py-") as folder:
        for plugin in run.MODULES:
            Path(folder, plugin).write_bytes(launcher(plugin))
        for conf in reversed(network.plugins):
            try:
                collect(network, conf, folder)
            except (CniError, OSError) as error:
                complain(f"cni-py uninstall: {netconf.string(conf, 'type')}: {error}")
                clean = False
    return clean


def collect(network: Network, conf: Object, folder: str) -> None:
    """Run GC of one of our plugins in this process, for every attachment that it knows of the network. CniError, OSError."""
    name = netconf.string(conf, "type")
    if name not in run.MODULES:
        return
    text = conflist.request(network, conf, {}, extra={"cni.dev/valid-attachments": [], "cni.dev/attachments": []})
    before = os.environ.get("CNI_PATH")
    os.environ["CNI_PATH"] = folder  # inherited by a delegate that is not ours
    try:
        run.load(name).gc(Call("GC", name, NetConf.parse(text), path=[folder]))
    finally:
        if before is None:
            del os.environ["CNI_PATH"]
        else:
            os.environ["CNI_PATH"] = before
