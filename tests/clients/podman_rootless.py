"""A user's podman with its CNI backend: a part of `make test-nerdctl`, which has the user's tools (nerdctl_rootless.py).

podman keeps one network namespace for all containers of a user, with a /run and /var/lib/cni of its own; there it calls the
plugins. The ports of the machine are its rootlessport's, which connects to the container itself.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients import fetch_debs, image
from tests.clients.containerd_host import HOST4, ContainerdHost, Namespaces, NoNamespaces, wait_for
from tests.clients.docker_host import ask
from tests.clients.nerdctl_rootless import HOME as ITS_HOME
from tests.clients.nerdctl_rootless import NAME, PACKAGES, RUNTIME, UID, USER
from tests.clients.podman_host import CONTAINERS_CONF, STORAGE_CONF, TRUST_ALL
from tests.lacking import missing, need_root, unavailable

pytestmark = pytest.mark.xdist_group("nerdctl-rootless")

HOME = "/mnt/home"  # podman hides /run
# What conmon has to know to call podman at the end of a container.
KNOWN = {
    "HOME": HOME,
    "XDG_RUNTIME_DIR": RUNTIME,
    "CONTAINERS_CONF": f"{HOME}/c",
    "CONTAINERS_STORAGE_CONF": f"{HOME}/s",
}


class Podman(ContainerdHost):
    """A host on which a user runs podman."""

    def start_containerd(self) -> None:
        """Podman needs none."""

    def set_up(self, debs: Path, archive: Path) -> None:
        """The user, podman's settings, the image and a network."""
        self.run("mount", "-t", "tmpfs", "tmpfs", "/mnt")
        self.run("sh", "-c", USER.replace(ITS_HOME, HOME))
        self.run("install", "-D", "--target-directory=/run/all", str(archive))
        path = ":".join([*fetch_debs.programs(debs), "/usr/sbin", "/usr/bin", "/sbin", "/bin"])
        environment = {**KNOWN, "USER": NAME, "PATH": path, "LD_LIBRARY_PATH": ":".join(fetch_debs.libraries(debs))}
        enter = [*self.enter, "setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups"]
        self.user = Namespaces(enter, environment)
        places = {
            "/run/podman-root": f"{HOME}/root",
            "/run/podman-run": f"{RUNTIME}/run",
            "/run/libpod": f"{RUNTIME}/libpod",
        }
        known = ", ".join(f'"{name}={value}"' for name, value in KNOWN.items())
        helpers = f'[engine]\nhelper_binaries_dir = ["{debs}/usr/lib/podman", "{debs}/usr/libexec/podman"]\n'
        settings = CONTAINERS_CONF.format(debs=debs, net_d=f"{HOME}/net.d", **environment)
        settings = settings.replace("[engine]\n", helpers).replace(
            "conmon_env_vars = [", f"conmon_env_vars = [{known}, "
        )
        for name, text in (("c", settings), ("s", STORAGE_CONF), ("policy", TRUST_ALL)):
            own = re.sub("|".join(places), lambda found: places[found[0]], text)
            self.user.run("tee", f"{HOME}/{name}", given=own)
        looked = self.user.run("podman", "info", "--format={{.Host.NetworkBackend}}", check=False)
        if looked.stdout.strip() != "cni":
            unavailable(f"podman's network backend is not CNI: {looked.stdout}{looked.stderr}")
        self.podman("load", f"--signature-policy={HOME}/policy", f"--input=/run/all/{archive.name}")
        self.podman("network", "create", "--subnet=10.4.1.0/24", "one")
        self.podman("network", "create", "--ipv6", "--subnet=2001:db8:4::/64", "--subnet=10.4.2.0/24", "two")

    def podman(self, *words: str) -> str:
        return self.user.run("podman", *words).stdout.strip()

    def attachments(self) -> list[str]:
        """Those that have a record, by the folders in the user's network namespace."""
        words = ("unshare", "--rootless-netns", "find", "/run/cni-py/attachments", "-name", "bridge.json")
        return self.podman(*words).split()

    def answers(self, name: str) -> str:
        """The first page of a container, on its port of the machine."""

        def look() -> str | None:
            page = ask(self.client, HOST4, 8080)
            return page if page.startswith(f"{name} ") else None

        return wait_for(f"an answer of {name}", look)


@pytest.fixture(scope="module")
def host(of_release: Path, archive: Path, our_bin_dir: Path) -> Iterator[Podman]:
    need_root()
    try:
        debs = fetch_debs.fetch(packages=PACKAGES)
        found = Podman(of_release, our_bin_dir).__enter__()
    except (NoNamespaces, fetch_debs.Unavailable, OSError, subprocess.SubprocessError) as error:
        missing(str(error))
    try:
        found.set_up(debs, archive)
        yield found
    finally:
        found.close()


def test_rootless_podman(host: Podman) -> None:
    """Two containers, two networks, a port, an address and a MAC address that were asked for; then one network less, and more."""
    host.podman("run", "--detach", "--name=web", "--network=one,two", "--publish=8080:80", image.NAME, "web", "80")
    host.answers("web")
    words = ["--network=one", "--ip=10.4.1.77", "--mac-address=02:00:5e:10:00:01"]
    host.podman("run", "--detach", "--name=peer", *words, image.NAME, "peer", "80")
    address = host.podman("inspect", '--format={{(index .NetworkSettings.Networks "one").IPAddress}}', "web")
    seen = host.podman("exec", "peer", "/bin/busybox", "wget", "-qO-", f"http://{address}/")
    assert image.Answer.parse(seen) == image.Answer("web", "10.4.1.77", address)
    assert "02:00:5e:10:00:01" in host.podman("exec", "peer", "/bin/busybox", "ip", "link", "show", "eth0")
    assert len(host.attachments()) == 3
    host.podman("network", "disconnect", "two", "web")
    assert len(host.attachments()) == 2
    host.podman("network", "connect", "two", "web")
    host.podman("restart", "--time=1", "web")
    host.answers("web")
    assert len(host.attachments()) == 3
    host.podman("rm", "--force", "--time=1", "web")
    assert len(host.attachments()) == 1
    host.podman("rm", "--force", "--time=1", "peer")
