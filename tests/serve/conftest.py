"""A host with the warm service, and our executables with both kinds of launcher."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import Lab
from runtime import ALL, Plugins

from tests.conftest import OURS, need_root
from tests.warm import Warm


@pytest.fixture(scope="session")
def native(native_bin_dir: Path) -> Plugins:
    return Plugins(OURS, native_bin_dir, ALL)


@pytest.fixture(scope="session")
def both(native: Plugins, our_bin_dir: Path) -> dict[str, Plugins]:
    return {"native": native, "python": Plugins(OURS, our_bin_dir, ALL)}


@pytest.fixture(params=["native", "python"])
def launchers(request: pytest.FixtureRequest, both: dict[str, Plugins]) -> Plugins:
    """The executables, of each kind in turn."""
    return both[request.param]


@pytest.fixture(scope="module")
def host() -> Iterator[Lab]:
    need_root()
    with Lab.from_yaml("lan.yaml") as lab:
        yield lab


@pytest.fixture(scope="module")
def warm(host: Lab) -> Iterator[Warm]:
    with Warm(host) as service:
        yield service
