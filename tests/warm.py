"""The warm service on a lab's host, as its unit file would start it: with the unit's capabilities and no others."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lab import Lab

UNIT = Path(__file__).parent.parent / "conf/cni-py.service"
COMMAND = Path(sys.executable).with_name("cni-py")
SOCKET = "/run/cni-py/serve.sock"
START_S = 20.0


def bounding_set() -> str:
    """The unit's capabilities as setpriv(1) takes them."""
    lines = re.findall(r"^CapabilityBoundingSet=(.*)$", UNIT.read_text(), re.MULTILINE)
    return ",".join(["-all", *(f"+{name.removeprefix('CAP_').lower()}" for line in lines for name in line.split())])


@dataclass
class Warm:
    """`with Warm(lab):` serves on the host's socket."""

    lab: Lab
    command: tuple[str, ...] = (str(COMMAND), "serve")
    node: str = "host"
    process: subprocess.Popen[bytes] | None = field(default=None)

    def __enter__(self) -> Warm:
        confined = ["setpriv", "--no-new-privs", f"--bounding-set={bounding_set()}", "--", *self.command]
        null = subprocess.DEVNULL
        self.process = self.lab[self.node].popen(confined, stdin=null, stdout=null, stderr=subprocess.PIPE)
        wait_until(lambda: self.ask().get("pid"), "the service does not answer")
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.signal("TERM")
            self.ended()

    def ask(self) -> dict[str, Any]:
        """Its status; {} when it does not answer."""
        done = self.lab[self.node].run([str(COMMAND), "serve", "--status", "--json"])
        return dict(json.loads(done.stdout)) if done.returncode == 0 else {}

    def signal(self, name: str) -> None:
        assert self.process is not None
        self.process.send_signal(getattr(signal, f"SIG{name}"))

    @property
    def pid(self) -> int:
        """In the lab's pid namespace."""
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"^NSpid:.*?(\d+)$", status, re.MULTILINE)[0])

    def ended(self) -> str:
        """Wait for its end; what it wrote to stderr."""
        assert self.process is not None
        _, said = self.process.communicate(timeout=START_S)
        return said.decode()


def wait_until(condition: Any, what: str, limit_s: float = START_S) -> Any:
    """The first value of `condition()` that is true."""
    deadline = time.monotonic() + limit_s
    while not (found := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.02)
    return found
