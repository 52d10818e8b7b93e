"""Fixtures that every test of an executable stands on: a lab, a directory of plugins, and a way to run one of them.

Ours are taken from CNI_PY_BIN_DIR, or put into a temporary directory by the `cni-py install` of the environment that
runs pytest. With CNI_GO_BIN_DIR (Debian's containernetworking-plugins) every test that asks for `plugins` or `cni` and is not
marked `ours_alone` runs a second time with those, so that the contract is tested and not our habits. With CNI_PY_CHAINED ours
are run through the plugin `chain`, each as the only one of its list. With CNI_PY_NEWEST (make test-newest) only those tests run
that meet the newest Go plugins or clients, CNI_GO_BIN_DIR being those plugins' directory.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "netns-fixtures"))  # its name is no package name

from lab import Lab  # noqa: E402
from node import PATH, open_nursery  # noqa: E402
from runtime import ALL, Outcome, Plugins, go_plugins  # noqa: E402

from cni_py.run import MODULES  # noqa: E402
from tests import lacking, signals  # noqa: E402

if TYPE_CHECKING:
    from _pytest.terminal import TerminalReporter

OURS, GO = "ours", "go"
OF_OUR_OWN = ("chain",)  # executables
need_root = lacking.need_root

counts: Counter[str] = Counter()  # tests that ran, by whose plugins
ways: Counter[str] = Counter()  # tests of tests/plugins that ran with ours, by how these were run
gaps: dict[str, float] = {}  # ms that a published port did not answer (tests/commands/test_restore_gaps.py)
golden: Counter[str] = Counter()  # recorded answers of the Go plugins (tests/golden)

# What takes longest begins first, so that in the end no worker is alone with it.
LONGEST = (
    "tests/test_lean.py::test_a_call_costs_the_same",
    "tests/test_tools.py::test_types_hold",
    "tests/fuzz/",
    "tests/golden/",
)

CHAINED = bool(os.environ.get("CNI_PY_CHAINED"))
NEWEST = os.environ.get("CNI_PY_NEWEST", "")  # the backend of those plugins

signals.restore()  # before pytest-xdist starts its workers


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):  # of pytest-xdist: before it has all tests in memory
        open_nursery()
    config.addinivalue_line("markers", "ours_alone: not run with the Go plugins, which differ here by design")
    config.addinivalue_line("markers", "unchained: about an executable of its own, so not run through chain")
    config.addinivalue_line("markers", "debian_kernel: needs what other kernels may lack; `make test-kernels` runs it")
    # scapy's IPsec layer names ciphers that the cryptography package is retiring, at import.
    config.addinivalue_line("filterwarnings", "ignore:.*has been moved to cryptography.hazmat.decrepit:Warning")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "plugins" in metafunc.fixturenames:
        alone = metafunc.definition.get_closest_marker("ours_alone")
        whose = [OURS, GO] if os.environ.get("CNI_GO_BIN_DIR") and not alone else [OURS]
        if NEWEST and not alone and "debs" not in metafunc.fixturenames:
            whose.remove(OURS)
        metafunc.parametrize("plugins", whose, indirect=True, scope="module")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--quick", action="store_true", help="units, and one test of each plugin in namespaces (make quick)"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("quick"):
        items[:] = units_and_one_per_plugin(items)
    if CHAINED:
        items[:] = [item for item in items if not item.get_closest_marker("unchained")]
    items[:] = [item for item in items if not is_unknown_to_go(item)]
    if NEWEST:
        items[:] = [item for item in items if meets_the_newest(item)]
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))


def is_unknown_to_go(item: pytest.Item) -> bool:
    """Whether a test is of an executable of our own, `name`, beside the Go plugins."""
    return parameters_of(item).get("plugins") == GO and parameters_of(item).get("name") in OF_OUR_OWN


def meets_the_newest(item: pytest.Item) -> bool:
    """Whether a test runs the Go plugins, or a client of today."""
    parameters = parameters_of(item)
    fixtures = item.fixturenames if isinstance(item, pytest.Function) else []
    return parameters.get("plugins") == GO or "debs" in parameters or "theirs" in fixtures


def parameters_of(item: pytest.Item) -> dict[str, object]:
    return item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}


def units_and_one_per_plugin(items: list[pytest.Item]) -> list[pytest.Item]:
    """The tests of tests/unit, and of those in tests/plugins the first of each plugin."""
    first: dict[str, pytest.Item] = {}
    for item in items:
        if item.path.is_relative_to(ROOT / "tests/plugins"):
            for plugin in MODULES:
                if item.path.stem.startswith(f"test_{plugin.replace('-', '_')}"):
                    first.setdefault(plugin, item)
    assert first.keys() == MODULES.keys(), "a plugin has no test"
    return [item for item in items if item.path.is_relative_to(ROOT / "tests/unit") or item in first.values()]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" and not report.skipped:
        whose = dict(report.user_properties).get("plugins")
        if whose:
            counts[str(whose)] += 1
        way = dict(report.user_properties).get("way")
        if way:
            ways[str(way)] += 1
    for name, value in report.user_properties if report.when == "call" else ():
        if name == "gap" and isinstance(value, tuple | list):
            gaps[str(value[0])] = float(value[1])
    if report.when == "call":  # a failed comparison tells its numbers, too
        numbers = dict(report.user_properties).get("golden")
        golden.update(numbers if isinstance(numbers, dict) else {})


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    terminalreporter.write_line(f"ran on {machine()}")
    if counts:
        terminalreporter.write_line(
            f"executables tested: {counts[OURS]} tests with ours{' (through chain)' * CHAINED}, "
            f"{counts[GO]} with the Go plugins"
        )
    if ways:
        listed = ", ".join(f"{number} {way}" for way, number in sorted(ways.items()))
        terminalreporter.write_line(f"of tests/plugins ran: {listed} (CNI_PY_WAY, tests/plugins/conftest.py)")
    if gaps:
        terminalreporter.write_line("longest gap of a published port, with cni-py restore --watch, in ms:")
        for damage, gap in gaps.items():
            terminalreporter.write_line(f"    {gap:8.0f}  {damage}")
    if golden:
        terminalreporter.write_line(
            f"golden answers: {golden['hold']} of {golden['all']} hold, {golden['named']} deviations named"
        )
    for line in lacking.summary(terminalreporter.stats.get("skipped", [])):
        terminalreporter.write_line(line)


def machine() -> str:
    """The versions that decide what is tested, as in "Debian GNU/Linux 12 (bookworm), Linux 6.1.0, Python 3.11.2, ..."."""
    system = platform.freedesktop_os_release()["PRETTY_NAME"]
    words = [system, f"Linux {platform.release()}", f"Python {platform.python_version()}"]
    for program in ("nft", "iptables"):
        path = shutil.which(program, path=PATH)
        words.append(subprocess.check_output([path, "--version"], text=True).strip() if path else f"no {program}")
    return ", ".join(words)


class Cni(Protocol):
    """Run one executable on the lab's host; see the fixture `cni`."""

    def __call__(
        self,
        verb: str,
        plugin: str,
        conf: Mapping[str, object] | str,
        container_id: str = "c1",
        netns: str | None = None,
        ifname: str = "eth0",
        **env: str | None,
    ) -> Outcome: ...


def install_ours(directory: Path, launcher: str = "python") -> Path:
    """The folder of our executables. In Python they are texts, to which tests add lines."""
    given = os.environ.get("CNI_PY_BIN_DIR")
    if given:
        return Path(given).resolve()
    command = Path(sys.executable).with_name("cni-py")
    if not command.exists():
        pytest.fail(
            f"{command} is missing: install the package into this environment, or set CNI_PY_BIN_DIR", pytrace=False
        )
    bin_dir = directory / "bin"
    subprocess.run(
        [command, "install", f"--launcher={launcher}", "--bin-dir", bin_dir, "--conf-dir", directory / "net.d"],
        check=True,
        timeout=300,  # an emulated machine takes minutes when it is not alone
        capture_output=True,
    )
    return bin_dir


@pytest.fixture(scope="session")
def our_bin_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our executables as a user has them: installed."""
    return install_ours(tmp_path_factory.mktemp("cni-py"))


@pytest.fixture(scope="session")
def native_bin_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our executables, compiled."""
    return install_ours(tmp_path_factory.mktemp("cni-py-native"), "native")


@pytest.fixture(scope="session")
def theirs() -> Plugins:
    """The Go plugins, for tests in which they and ours meet."""
    if not os.environ.get("CNI_GO_BIN_DIR"):
        lacking.missing("CNI_GO_BIN_DIR names no Go plugins")
    return go_plugins(Path(os.environ["CNI_GO_BIN_DIR"]).resolve(), NEWEST)


@pytest.fixture(scope="session")
def plugins(request: pytest.FixtureRequest) -> Plugins:
    if request.param == GO:
        theirs: Plugins = request.getfixturevalue("theirs")
        return theirs
    our_directory: Path = request.getfixturevalue("our_bin_dir")
    return Plugins(OURS, our_directory, ALL, CHAINED)


@pytest.fixture(autouse=True)
def _count_plugins(request: pytest.FixtureRequest) -> None:
    if "plugins" in request.fixturenames:
        plugins: Plugins = request.getfixturevalue("plugins")
        request.node.user_properties.append(("plugins", plugins.whose))


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A host on a LAN with a client, and empty containers c1 and c2 (netns-fixtures/lan.yaml)."""
    need_root()
    with Lab.from_yaml("lan.yaml") as topology:
        yield topology


@pytest.fixture
def cni(lab: Lab, plugins: Plugins) -> Cni:
    """cni(verb, plugin, conf, container_id, netns, ifname, CNI_ARGS=..., ...) -> Outcome; see runtime.py."""

    def run(
        verb: str,
        plugin: str,
        conf: Mapping[str, object] | str,
        container_id: str = "c1",
        netns: str | None = None,
        ifname: str = "eth0",
        **env: str | None,
    ) -> Outcome:
        return plugins.run(lab, verb, plugin, conf, container_id, netns, ifname, **env)

    return run
