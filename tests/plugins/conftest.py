"""What tests of executables in namespaces share."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import Lab
from runtime import ALL, Plugins

from tests.conftest import GO, OURS, need_root
from tests.lacking import unavailable
from tests.plugins.bridge_network import BridgeNetwork, ForeignIpam
from tests.warm import Warm

DIRECT, PYTHON, NATIVE = "direct", "warm, python", "warm, native"
# A sample of the modules, of each kind of thing that a call does. The way is no concern of the plugins, so that one of each is
# enough; CNI_PY_WAY="warm, native" runs all of them so.
WAYS = {
    "test_life": NATIVE,
    "test_interruption": NATIVE,
    "test_firewall": NATIVE,
    "test_delegation": PYTHON,
    "test_portmap_hostile": PYTHON,
}

# What a copy of an executable does first: it asks no service, and to it the kernel has no nfnetlink.
NO_NFNETLINK = """
sys.argv.append("direct")
import _socket
class socket(_socket.socket):
    def __init__(self, family=-1, type=-1, proto=-1, fileno=None):
        if (family, proto) == (16, 12):  # AF_NETLINK, NETLINK_NETFILTER
            raise OSError(93, "Protocol not supported")
        super().__init__(family, type, proto, fileno)
_socket.socket = socket
"""
START = "from cni_py.run import main"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A single row of a table may be marked `ours_alone` too: leave it out with the Go plugins."""
    theirs = [item for item in items if item.get_closest_marker("ours_alone") and whose(item) == GO]
    if theirs:
        items[:] = [item for item in items if item not in theirs]
        config.hook.pytest_deselected(items=theirs)


def whose(item: pytest.Item) -> object:
    return (
        item.callspec.params.get("plugins") if isinstance(item, pytest.Function) and hasattr(item, "callspec") else ""
    )


@pytest.fixture(scope="module")
def way(request: pytest.FixtureRequest) -> str:
    """How ours are run in this module: as CNI_PY_WAY says, or as WAYS has it."""
    return os.environ.get("CNI_PY_WAY") or WAYS.get(Path(request.node.path).stem, DIRECT)


@pytest.fixture(scope="module")
def plugins(request: pytest.FixtureRequest, plugins: Plugins, way: str) -> Plugins:
    """Those of the session, compiled where the way is that."""
    found = plugins
    if found.whose == OURS and way == NATIVE:
        return Plugins(OURS, request.getfixturevalue("native_bin_dir"), ALL)
    return found


@pytest.fixture(autouse=True)
def _count_ways(request: pytest.FixtureRequest, way: str) -> None:
    if "plugins" in request.fixturenames and request.getfixturevalue("plugins").whose == OURS:
        request.node.user_properties.append(("way", way))


@contextlib.contextmanager
def lab_with_its_service(way: str) -> Iterator[Lab]:
    need_root()
    with Lab.from_yaml("lan.yaml") as lab, Warm(lab) if way != DIRECT else contextlib.nullcontext():
        yield lab


@pytest.fixture(scope="module")
def shared_lab(way: str) -> Iterator[Lab]:
    with lab_with_its_service(way) as lab:
        yield lab


@pytest.fixture
def lab(way: str) -> Iterator[Lab]:
    with lab_with_its_service(way) as lab:
        yield lab


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> type[BridgeNetwork]:
    """What `net` and `other` are: of a test's parameter, or as its module says with a fixture of the same name."""
    found: type[BridgeNetwork] = getattr(request, "param", BridgeNetwork)
    return found


# What ip-link(8) is asked to make, where the kernel may have none
RARE = {
    "ipvlan": "link lan0 type ipvlan",
    "vlan": "link lan0 type vlan id 4094",
    "dummy": "type dummy",
    "vrf": "type vrf table 4094",
    "VLAN-filtering bridge": "type bridge vlan_filtering 1",
}


def need_kind(lab: Lab, plugin: str) -> None:
    """Skip where the kernel has no links of the plugin's kind: those of Debian have (make test-kernels)."""
    words = RARE.get(plugin)
    if words is None:
        return
    if lab["host"].run(["ip", "link", "add", "try0", *words.split()]).returncode:
        unavailable(f"this kernel has no {plugin} links")
    lab["host"].run(["ip", "link", "delete", "try0"], check=True)


@pytest.fixture
def net(shared_lab: Lab, plugins: Plugins, kind: type[BridgeNetwork]) -> Iterator[BridgeNetwork]:
    need_kind(shared_lab, kind.plugin)
    if not (plugins.directory / kind.plugin).exists():
        pytest.skip(f"these plugins have no {kind.plugin}")
    network = kind(shared_lab, plugins)
    yield network
    network.close()


@pytest.fixture
def other(shared_lab: Lab, plugins: Plugins, kind: type[BridgeNetwork]) -> Iterator[BridgeNetwork]:
    network = kind(shared_lab, plugins)
    yield network
    network.close()


@pytest.fixture
def foreign(tmp_path: Path) -> ForeignIpam:
    return ForeignIpam(tmp_path / "foreign")


@pytest.fixture(scope="session")
def without_nftables(our_bin_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Plugins:
    """Copies of our executables on a kernel without nftables, as far as they can see."""
    directory = tmp_path_factory.mktemp("without-nftables")
    for name in ("bridge", "host-local", "portmap"):
        before, start, after = (our_bin_dir / name).read_text().partition(START)
        assert start, f"{name} does not start as this test expects"
        (directory / name).write_text(f"{before}{NO_NFNETLINK}{start}{after}")
        (directory / name).chmod(0o755)
    return Plugins(OURS, directory, ALL)
