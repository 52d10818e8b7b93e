"""The throwaway host of these tests, once with each directory of plugins."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from runtime import Plugins

from tests.clients import fetch_debs, image
from tests.clients.containerd_host import ContainerdHost, NoNamespaces
from tests.lacking import missing


@pytest.fixture(scope="session")
def debs() -> Path:
    try:
        return fetch_debs.fetch()
    except (fetch_debs.Unavailable, OSError) as error:
        missing(f"Debian's containerd cannot be had: {error}")


@pytest.fixture(scope="module")
def host(debs: Path, plugins: Plugins, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ContainerdHost]:
    archive = tmp_path_factory.mktemp("image") / "who.tar"
    image.write_archive(fetch_debs.busybox(debs), archive)
    try:
        entered = ContainerdHost(debs, plugins.directory).__enter__()
    except NoNamespaces as error:
        missing(str(error))
    try:
        entered.run("ctr", "image", "import", str(archive))
        yield entered
    finally:
        entered.close()
