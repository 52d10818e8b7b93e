"""The network that `cni-py install` writes: conf/cni-py.conflist, adapted to this host. Its plugins run in one process (chain).

IPv6 is switched off        the network has no IPv6 range and route
other networks exist        it is written only with --network, under a name that sorts last: runtimes use the first network
a subnet is in use          install names the overlap (overlaps.py); the operator chooses another subnet
"""

import json
from importlib import resources
from pathlib import Path

from cni_py.errors import CniError
from cni_py.kernel import sysctl
from cni_py.protocol import conflist
from cni_py.protocol.conflist import Network

NAME = conflist.DEFAULT
BRIDGE = "cni-py0"
FILE = "10-cni-py.conflist"
# Beside other networks: the first of these names that sorts after all of theirs.
LAST_FILES = ("99-cni-py.conflist", "zz-cni-py.conflist", "~~~-cni-py.conflist")
SUFFIXES = (*conflist.LIST_SUFFIXES, *conflist.SINGLE_SUFFIXES)


def text(*, ipv6: bool) -> bytes:
    """The configuration list as JSON, with its IPv6 range and route or without."""
    written = resources.files("cni_py.conf").joinpath("cni-py.conflist").read_bytes()
    if ipv6:
        return written
    network = json.loads(written)
    ipam = network["plugins"][0]["plugins"][0]["ipam"]
    ipam["ranges"] = [ranges for ranges in ipam["ranges"] if ":" not in ranges[0]["subnet"]]
    ipam["routes"] = [route for route in ipam["routes"] if ":" not in route["dst"]]
    return (json.dumps(network, indent=2) + "\n").encode()


def ipv6_is_on() -> bool:
    """Whether a new interface of this host may have IPv6 addresses."""
    try:
        return all(sysctl.read(f"ipv6/conf/{which}/disable_ipv6") == "0" for which in ("all", "default"))
    except OSError:  # booted with ipv6.disable=1, or the module is not there
        return False


def files(folder: Path) -> list[Path]:
    """The configurations of a folder, in the order in which runtimes read them."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and not path.is_dir())


def read(paths: list[Path]) -> tuple[list[Network], list[str]]:
    """The networks in the files, and a sentence for each file that cannot be read."""
    found, wrong = [], []
    for path in paths:
        try:
            found.append(conflist.read(path))
        except CniError as error:
            wrong.append(str(error))
    return found, wrong


def place(folder: Path) -> Path:
    """The path at which to write the network: the first network of the folder must stay the first."""
    others = [path.name for path in files(folder)]
    if not others:
        return folder / FILE
    return folder / next((name for name in LAST_FILES if name > others[-1]), LAST_FILES[-1])
