"""The throwaway host of these tests, once with each directory of plugins, and some tests once more with today's runtimes.

Tests marked `today` run with the runtimes of Debian's testing suite, too, beside those of this machine's release. With
CNI_PY_NEWEST (make test-newest) all of them run with those instead.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from runtime import Plugins

from tests.clients import fetch_debs, image
from tests.clients.containerd_host import ContainerdHost, NoNamespaces
from tests.lacking import missing, unavailable

RELEASE, TODAY = "release", "today"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "today: run with the runtimes of Debian's testing suite, too")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "debs" in metafunc.fixturenames:
        today = pytest.param(TODAY, marks=pytest.mark.xdist_group(f"{metafunc.module.__name__} {TODAY}"))
        marked = metafunc.definition.get_closest_marker(TODAY)
        suites = [today] if os.environ.get("CNI_PY_NEWEST") else [RELEASE, today] if marked else [RELEASE]
        metafunc.parametrize("debs", suites, indirect=True, scope="module")


@pytest.fixture(scope="session")
def of_release() -> Path:
    """The packages of this machine's release."""
    try:
        return fetch_debs.fetch()
    except (fetch_debs.Unavailable, OSError) as error:
        missing(f"Debian's containerd cannot be had: {error}")


@pytest.fixture(scope="session")
def of_today() -> Path:
    """Those of the testing suite."""
    try:
        return fetch_debs.fetch_newest()
    except fetch_debs.Unknown as error:
        unavailable(f"Debian's testing suite: {error}")
    except (fetch_debs.Unavailable, OSError, subprocess.SubprocessError) as error:
        missing(f"the runtimes of Debian's testing suite cannot be had: {error}")


@pytest.fixture(scope="module")
def debs(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(f"of_{request.param}")
    return found


@pytest.fixture(scope="session")
def archive(of_release: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image of the containers."""
    archive = tmp_path_factory.mktemp("image") / "who.tar"
    image.write_archive(fetch_debs.busybox(of_release), archive)
    return archive


@pytest.fixture(scope="module")
def host(debs: Path, archive: Path, plugins: Plugins) -> Iterator[ContainerdHost]:
    try:
        entered = ContainerdHost(debs, plugins.directory).__enter__()
    except NoNamespaces as error:
        missing(str(error))
    try:
        entered.import_image(archive)
        yield entered
    finally:
        entered.close()
