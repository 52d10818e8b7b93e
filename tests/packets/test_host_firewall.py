"""Debian's ufw on a host: it decides about ports that portfwd listens on (`userlandProxy: always`), and not about NAT's."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conversation import HOST
from lab import ANSWER_S, Lab
from node import Node
from runtime import Network, Plugins, mapping

from tests.clients import fetch_debs
from tests.lacking import missing
from tests.portfwd.publisher import Publisher

pytestmark = pytest.mark.ours_alone

DENIED, ALLOWED, BY_NAT = 8080, 8081, 8090
LOOPBACK = {4: "127.0.0.1", 6: "::1"}


class Mixed(Network):
    """A network whose containers are published by portfwd, or by NAT."""

    def portmap(self, container_id: str) -> dict[str, object]:
        return {**super().portmap(container_id), "userlandProxy": "always" if container_id == "c1" else "never"}

    def pass_forwarded(self, container_id: str) -> None:
        """ADD of firewall: what NAT sends to the container is forwarded, which ufw drops by policy."""
        conf: dict[str, object] = {"cniVersion": "1.0.0", "name": self.name, "type": "firewall"}
        self._well("ADD", "firewall", {**conf, "prevResult": self.results[container_id]}, container_id)


def ufw(host: Node, root: Path, *words: str) -> None:
    """Run ufw, in a tree of its own."""
    places = [f"--rootdir={root}", f"--datadir={root}"]
    path = {"PYTHONPATH": str(root / "usr/lib/python3/dist-packages"), "PYTHONDONTWRITEBYTECODE": "1"}
    host.run([sys.executable, str(root / "usr/sbin/ufw"), *places, *words], env=path, check=True)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """What the package has, and what its postinst makes of that."""
    try:
        debs = fetch_debs.fetch()
    except (fetch_debs.Unavailable, OSError) as error:
        missing(f"Debian's ufw cannot be had: {error}")
    for folder in ("etc", "usr/share/ufw", "usr/lib/python3/dist-packages/ufw", "lib/ufw", "usr/lib/ufw"):
        if (debs / folder).is_dir():  # the last two: which of them depends on the release
            shutil.copytree(debs / folder, tmp_path / folder)
    if not (tmp_path / "lib/ufw").exists():  # /lib is a link to usr/lib
        (tmp_path / "lib").mkdir(exist_ok=True)
        (tmp_path / "lib/ufw").symlink_to(tmp_path / "usr/lib/ufw")
    (tmp_path / "usr/sbin").mkdir()
    shutil.copy(debs / "usr/sbin/ufw", tmp_path / "usr/sbin")
    templates = tmp_path / "usr/share/ufw"
    for template in (*templates.glob("iptables/*.rules"), *templates.glob("*.init"), templates / "ufw.conf"):
        shutil.copy(template, tmp_path / "etc/ufw")
    return tmp_path


@pytest.fixture
def service(lab: Lab) -> Iterator[Publisher]:
    publisher = Publisher(lab["host"])
    yield publisher
    publisher.end()


def is_reached(lab: Lab, node: str, address: str, port: int, *, wanted: bool) -> bool:
    """`wanted`: what the test expects. An answer that is may take a busy machine long."""
    try:
        lab.fetch(node, address, port, timeout_s=ANSWER_S if wanted else 0.5)
    except (TimeoutError, ConnectionError):
        return False
    return True


def test_ufw_decides_about_what_portfwd_publishes(lab: Lab, plugins: Plugins, service: Publisher, tree: Path) -> None:
    ufw(lab["host"], tree, "allow", f"{ALLOWED}/tcp")
    ufw(lab["host"], tree, "--force", "enable")  # incoming is denied by default, and forwarding
    network = Mixed(lab, plugins)
    network.attach("c1", mapping(DENIED, 80), mapping(ALLOWED, 80))
    network.attach("c2", mapping(BY_NAT, 80))
    network.pass_forwarded("c2")
    for name in ("c1", "c2"):
        lab.serve(name, 80)
    wanted = {DENIED: False, ALLOWED: True, BY_NAT: True}
    for family in (4, 6):
        assert {
            port: is_reached(lab, "client", HOST[family], port, wanted=well) for port, well in wanted.items()
        } == wanted
        assert is_reached(lab, "host", LOOPBACK[family], DENIED, wanted=True)
