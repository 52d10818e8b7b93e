"""firewalld on a lab's host, from Debian's packages unpacked in a folder: with a D-Bus and settings of its own."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from node import SLOWNESS, LabError

if TYPE_CHECKING:
    from types import TracebackType

    from lab import Lab

PYTHON = "/usr/bin/python3"  # the distribution's, for which the bindings of D-Bus are built
START_S = 60.0 * SLOWNESS
BUS = """\
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path={path}</listen>
  <policy context="default">
    <allow own="*"/>
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow user="*"/>
  </policy>
</busconfig>
"""


class Firewalld:
    """The daemon, and its bus. `backend` is its FirewallBackend: nftables or iptables."""

    def __init__(self, lab: Lab, debs: Path, folder: Path, backend: str = "nftables") -> None:
        self.lab, self.debs, self.folder = lab, debs, folder
        self.processes: list[subprocess.Popen[bytes]] = []
        (folder / "etc/zones").mkdir(parents=True)
        (folder / "etc/firewalld.conf").write_text(f"DefaultZone=public\nFirewallBackend={backend}\n")
        (folder / "bus.conf").write_text(BUS.format(path=folder / "bus"))
        libraries = [str(each) for top in ("usr/lib", "lib") for each in sorted((debs / top).glob("*-linux-gnu*"))]
        self.env = {
            "DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={folder}/bus",
            "PYTHONPATH": str(debs / "usr/lib/python3/dist-packages"),
            "LD_LIBRARY_PATH": ":".join(libraries),
            "GI_TYPELIB_PATH": ":".join(f"{each}/girepository-1.0" for each in libraries),
            "PATH": ":".join(
                [*(str(debs / each) for each in ("usr/bin", "usr/sbin", "bin", "sbin")), os.defpath, "/usr/sbin"]
            ),
        }

    def start(self, *words: str) -> None:
        """Start a program of the two."""
        log = (self.folder / "log").open("ab")
        with log:
            self.processes.append(self.lab["host"].popen(words, env=self.env, stdout=log, stderr=log))

    def __enter__(self) -> Firewalld:
        self.start("dbus-daemon", f"--config-file={self.folder}/bus.conf", "--nofork", "--nopidfile", "--nosyslog")
        self.await_file(self.folder / "bus")
        self.start_daemon()
        return self

    def start_daemon(self) -> None:
        """Start firewalld itself, and wait until it answers."""
        options = ["--nofork", "--nopid", "--system-config", f"{self.folder}/etc"]
        options += ["--default-config", f"{self.debs}/usr/lib/firewalld"]
        self.start(PYTHON, f"{self.debs}/usr/sbin/firewalld", *options, "--log-target", "console")
        self.await_answer()

    def await_answer(self) -> None:
        end = time.monotonic() + START_S
        while self.ask("--state", check=False) != "running":
            self.look()
            if time.monotonic() > end:
                raise TimeoutError(f"firewalld does not answer: {self.said()}")
            time.sleep(0.1)

    def reload(self, word: str = "--reload") -> None:
        """Reload, and wait until it is done: an emulated machine needs longer than the 25 s that firewall-cmd waits."""
        try:
            self.ask(word)
        except LabError as error:
            if "Did not receive a reply" not in str(error):
                raise
            self.await_answer()

    def restart(self) -> None:
        """End firewalld, and start it anew on the same bus."""
        self.end(self.processes.pop())
        self.start_daemon()

    def await_file(self, path: Path) -> None:
        end = time.monotonic() + START_S
        while not path.exists():
            self.look()
            if time.monotonic() > end:
                raise TimeoutError(f"no {path}: {self.said()}")
            time.sleep(0.02)

    def look(self) -> None:
        """ChildProcessError when one of them has ended."""
        if any(process.poll() is not None for process in self.processes):
            raise ChildProcessError(self.said())

    def said(self) -> str:
        return (self.folder / "log").read_text()

    def ask(self, *words: str, check: bool = True) -> str:
        """firewall-cmd."""
        command = [PYTHON, f"{self.debs}/usr/bin/firewall-cmd", *words]
        return self.lab["host"].run(command, env=self.env, timeout_s=START_S, check=check).stdout.strip()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        for process in reversed(self.processes):
            self.end(process)

    def end(self, process: subprocess.Popen[bytes]) -> None:
        """End one of the two."""
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
