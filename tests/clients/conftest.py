"""The throwaway host of these tests, once with each directory of plugins."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from runtime import Plugins

from tests.clients import fetch_debs, image
from tests.clients.containerd_host import ContainerdHost, Failed


@pytest.fixture(scope="session")
def debs() -> Path:
    try:
        return fetch_debs.fetch()
    except (fetch_debs.Unavailable, OSError) as error:
        missing(f"Debian's containerd cannot be had: {error}")


@pytest.fixture(scope="module")
def host(debs: Path, plugins: Plugins, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ContainerdHost]:
    archive = tmp_path_factory.mktemp("image") / "who.tar"
    image.write_archive(debs / "bin/busybox", archive)
    try:
        entered = ContainerdHost(debs, plugins.directory).__enter__()
    except Failed as failure:
        missing(str(failure))
    try:
        entered.run("ctr", "image", "import", str(archive))
        yield entered
    finally:
        entered.close()


def missing(what: str) -> NoReturn:
    """Skip on a laptop, fail in CI."""
    if os.environ.get("CI"):
        pytest.fail(what)
    pytest.skip(what)
