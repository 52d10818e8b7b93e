"""Facts about kernel, programs and disks: read from files, and asked in ways that change nothing."""

from __future__ import annotations

import gzip
import os
import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

from cni_py.doctor.values import Disk, Feature, State
from cni_py.errors import CniError
from cni_py.iptables import tool
from cni_py.kernel import libnftables
from cni_py.nftables import ruleset

# Name: the symbol of the kernel's configuration, the module
FEATURES = {
    "nf_tables": ("NF_TABLES", "nf_tables"),
    "nf_tables inet": ("NF_TABLES_INET", "nf_tables"),
    "nf_tables bridge": ("NF_TABLES_BRIDGE", "nf_tables"),
    "nf_tables nat": ("NFT_NAT", "nft_nat"),
    "nf_tables masquerade": ("NFT_MASQ", "nft_masq"),
    "nf_tables fib": ("NFT_FIB_INET", "nft_fib_inet"),
    "conntrack": ("NF_CONNTRACK", "nf_conntrack"),
    "conntrack netlink": ("NF_CT_NETLINK", "nf_conntrack_netlink"),
    "bridge": ("BRIDGE", "bridge"),
    "bridge vlan_filtering": ("BRIDGE_VLAN_FILTERING", "bridge"),
    "br_netfilter": ("BRIDGE_NETFILTER", "br_netfilter"),
    "veth": ("VETH", "veth"),
    "macvlan": ("MACVLAN", "macvlan"),
    "tbf": ("NET_SCH_TBF", "sch_tbf"),
    "ifb": ("IFB", "ifb"),
    "mirred": ("NET_ACT_MIRRED", "act_mirred"),
    "sk_lookup": ("BPF_SYSCALL", ""),  # BPF_PROG_TYPE_SK_LOOKUP: Linux 5.9
}
SK_LOOKUP_SINCE = (5, 9)
CONFIG_MAX = 1 << 22  # bytes
ANSWER_S = 5.0


def release() -> tuple[int, int]:
    """Major and minor number of the kernel."""
    found = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def features(root: Path) -> tuple[tuple[Feature, ...], bool]:
    """The features, and whether the running kernel's modules are gone while there are some of another one."""
    symbols = kernel_config(root)
    folder = root / "lib/modules" / os.uname().release
    known = modules_in(folder)
    gone = not folder.is_dir() and any((root / "lib/modules").glob("*/modules.dep"))
    found = [Feature(name, state(symbols, known, *by)) for name, by in FEATURES.items()]
    if release() < SK_LOOKUP_SINCE:
        found = [Feature(one.name, "no") if one.name == "sk_lookup" else one for one in found]
    return tuple(found), gone


def state(symbols: dict[str, str], known: dict[str, bool], symbol: str, module: str) -> State:
    """The state of a feature by the kernel's configuration, else by the lists of modules."""
    if module and os.path.isdir(f"/sys/module/{module}") and not symbols:
        return "yes"
    if symbols:
        value = symbols.get(symbol, "n")
        if value != "m":
            return "yes" if value == "y" else "no"
    if module and (os.path.isdir(f"/sys/module/{module}") or known.get(module)):
        return "yes"
    return "loadable" if module in known else "unknown"


def kernel_config(root: Path) -> dict[str, str]:
    """Symbols and their values ("y", "m") of the running kernel; empty where no file tells."""
    here = os.uname().release
    for path in (f"boot/config-{here}", f"lib/modules/{here}/config", f"usr/lib/modules/{here}/config"):
        try:
            with (root / path).open(encoding="utf-8", errors="replace") as file:
                return parse_config(file.read(CONFIG_MAX))
        except OSError:
            continue
    try:
        with gzip.open(root / "proc/config.gz", "rt", encoding="utf-8", errors="replace") as packed:
            return parse_config(packed.read(CONFIG_MAX))
    except (OSError, EOFError):
        return {}


def parse_config(text: str) -> dict[str, str]:
    """CONFIG_X=y as {"X": "y"}."""
    return dict(re.findall(r"^CONFIG_(\w+)=([ym])$", text, re.MULTILINE))


def modules_in(folder: Path) -> dict[str, bool]:
    """The modules in a kernel's folder by name: True for those that are built in."""
    found: dict[str, bool] = {}
    for file, built_in in (("modules.dep", False), ("modules.builtin", True)):
        try:
            text = (folder / file).read_text(errors="replace")
        except OSError:
            continue
        names = re.findall(r"^(?:\S*/)?([\w-]+)\.ko(?:\.\w+)?(?::|$)", text, re.MULTILINE)
        found |= dict.fromkeys((name.replace("-", "_") for name in names), built_in)
    return found


def nftables(found: Iterable[Feature]) -> tuple[str, str, str]:
    """The version of libnftables; why it cannot be used; what the kernel says to our tables without making them.

    The kernel is asked only where that loads no module: where it can load none, or all are there.
    """
    try:
        binding = libnftables.binding()
    except CniError as error:
        return "", str(error), ""
    version = program_version("nft", r"v(\d+(?:\.\d+)+)")
    needed = [one.state for one in found if one.name.startswith(("nf_tables", "conntrack"))]
    if os.geteuid() != 0 or (os.path.exists("/proc/modules") and set(needed) != {"yes"}) or "no" in needed:
        return version, "", ""
    nft = binding.Nftables()
    nft.set_dry_run(True)  # no NFNL_MSG_BATCH_END is sent, so that the kernel checks everything and keeps nothing
    for bridge in (False, True):
        status, _, refusal = nft.cmd(ruleset.table(bridge))
        if status != 0:
            return version, "", str(refusal).strip()
    return version, "", ""


def iptables() -> tuple[tuple[str, str], ...]:
    """("iptables", "1.8.9 (nf_tables)"): the programs of iptables that are there."""
    found = ((name, program_version(name, r"v(.*\S)")) for name in tool.TOOLS.values())
    return tuple((name, version) for name, version in found if version)


def program_version(name: str, pattern: str) -> str:
    """What a program says to --version; "" where it is missing."""
    try:
        said = re.search(pattern, output(tool.find(name), "--version"))
    except CniError:
        return ""
    return said[1] if said else ""


def output(*words: str) -> str:
    """What a program prints; "" when it cannot be run, or takes longer than ANSWER_S."""
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=ANSWER_S, check=False)
    except (OSError, subprocess.SubprocessError, ValueError):
        return ""
    return done.stdout.decode("utf-8", "replace")


def limits(names: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Name and value of sysctls; those that cannot be read are left out."""
    found = []
    for name in names:
        try:
            with open(f"/proc/sys/{name.replace('.', '/')}", encoding="ascii", errors="replace") as file:
                found.append((name, file.read(4096).strip()))
        except OSError:
            continue
    return tuple(found)


def disks(root: Path, paths: Iterable[str]) -> Iterator[Disk]:
    """The file systems of the paths that exist, or of the nearest folder above."""
    seen = set()
    for path in paths:
        place = root / path.lstrip("/")
        while not place.exists() and place != place.parent:
            place = place.parent
        try:
            device, had = place.stat().st_dev, os.statvfs(place)
        except OSError:
            continue
        if device in seen:
            continue
        seen.add(device)
        yield Disk(
            path=path,
            free=had.f_bavail * had.f_frsize,
            size=had.f_blocks * had.f_frsize,
            inodes_free=had.f_favail,
            inodes=had.f_files,
            read_only=bool(had.f_flag & os.ST_RDONLY),
        )
