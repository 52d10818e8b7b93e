"""Executables that go wrong on request, and the state of a host that must not change by it."""

from __future__ import annotations

import fnmatch
from pathlib import Path

import pytest
from lab import Lab
from runtime import ALL, Plugins

from cni_py.run import MODULES

INJECT = Path(__file__).with_name("inject.py")
START = "from cni_py.run import main"
# What host-local remembers: the address it gave out last, and of which state of its directory its index is.
KEPT_FILES = ("/var/lib/cni/networks/*/last_reserved_ip.*", "/run/cni-py/host-local/*/state")


@pytest.fixture(scope="session")
def saboteurs(our_bin_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Plugins:
    """Copies of our installed executables that load inject.py before they start. Only the copies have it."""
    directory = tmp_path_factory.mktemp("saboteurs")
    for name in MODULES:
        before, start, after = (our_bin_dir / name).read_text().partition(START)
        assert start, f"{name} does not start as this test expects"
        copy = directory / name
        copy.write_text(f"{before}exec(open({str(INJECT)!r}).read())\n{start}{after}")
        copy.chmod(0o755)
    return Plugins("ours", directory, ALL)


def host_state(lab: Lab) -> dict[str, object]:
    """The snapshot of the host without what changes by design."""
    host = lab.snapshot("host")
    trees = host["files"]
    assert isinstance(trees, dict)
    for top, entries in trees.items():
        trees[top] = {path: entry for path, entry in entries.items() if not is_kept(path, entry)}
    return host


def is_kept(path: str, entry: str) -> bool:
    """An empty reservation, of a writer that died before its write, is none: host-local gives the address to the next."""
    is_empty = path.startswith("/var/lib/cni/networks/") and entry == "-rw------- "
    return is_empty or any(fnmatch.fnmatch(path, pattern) for pattern in KEPT_FILES)
