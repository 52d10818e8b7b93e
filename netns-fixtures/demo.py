"""The demo: connect two containers to a network, publish a port of one, and try every way to it. Nothing stays behind.

Needs root, no daemon and no network: a throwaway host with its LAN and its containers is made of namespaces, the
plugins are installed inside it with `cni-py install`, and the containers are connected with `cni-py-exec`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import screen
import snapshot
from lab import Lab
from node import SLOWNESS, LabError, Node
from screen import heading, say, show_lines

NETWORK = "cni-py"  # the name in conf/cni-py.conflist, which `cni-py install` writes where there is no other
PORT, CONTAINER_PORT = 8080, 80
POD_PORT = 9000  # of the process that joins the pod
SIDECAR_PORT = 9090  # where portfwd publishes it
HOST = {4: "198.51.100.1", 6: "2001:db8:1::1"}
CLIENT = {4: "198.51.100.7", 6: "2001:db8:1::7"}
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
SUCCESS, FAILED, LACKING, INTERRUPTED = 0, 1, 3, 128  # exit status; a signal adds its number
PUBLISHER = "/run/cni-py/portfwd.sock"
START_S = 10.0 * SLOWNESS
PLAN_LINES = 8  # of about 37


class DemoError(Exception):
    """The demo found a fault."""


class EnvironmentLacks(Exception):
    """This machine cannot run the demo; the message says what is missing."""


# Commands


def command(name: str) -> str:
    """The path of one of our commands, which pip installs beside the interpreter. EnvironmentLacks."""
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        raise EnvironmentLacks(f"{name} is not installed beside {sys.executable}: run `pip install .` there")
    return str(path)


def run(node: Node, *words: str) -> str:
    """Print a command as it would be typed on the host, run it there, and return its stdout. DemoError."""
    say(f"# {' '.join([os.path.basename(words[0]), *words[1:]])}")
    done = node.run(list(words))
    if done.returncode:
        raise DemoError(
            f"{os.path.basename(words[0])} ended with status {done.returncode}: {(done.stderr or done.stdout).strip()}"
        )
    return done.stdout


# The paths to a published port


@dataclass(frozen=True, slots=True)
class Path4and6:
    """A path to the published port, the same in both families."""

    words: str
    node: str  # who asks
    target: dict[int, str]
    source: dict[int, str] | None  # the address that the server must see; None: the gateway's

    def expected(self, family: int, gateway: dict[int, str]) -> str:
        return (self.source or gateway)[family]


PATHS = [
    Path4and6("LAN", "client", HOST, CLIENT),
    Path4and6("host", "host", HOST, HOST),
    Path4and6("host lo", "host", LOOPBACK, None),
    Path4and6("neighbour", "other", HOST, None),
    Path4and6("itself", "web", HOST, None),
]
LEGEND = (
    "LAN: a machine on it; host: by its own address; host lo: by its loopback; neighbour: the other container; "
    "itself: web, by way of the host (hairpin)"
)


@dataclass(frozen=True, slots=True)
class Row:
    words: str
    asked: str
    outcome: str
    well: bool


def try_path(lab: Lab, path: Path4and6, family: int, gateway: dict[int, str]) -> Row:
    """Fetch a page: by NAT, or at [::1], which NAT cannot serve, by portfwd."""
    address = path.target[family]
    asked = f"[{address}]:{PORT}" if family == 6 else f"{address}:{PORT}"
    try:
        answer = lab.fetch(path.node, address, PORT)
    except OSError as error:
        return Row(path.words, asked, f"no page: {error}", False)
    role = {CLIENT[family]: "the client", HOST[family]: "the host", gateway[family]: "the gateway"}
    way = ", by portfwd" if address == LOOPBACK[6] else ""
    seen = f"{answer.name} saw {answer.peer}, {role.get(answer.peer, 'unexpected')}{way}"
    return Row(path.words, asked, seen, answer.name == "web" and answer.peer == path.expected(family, gateway))


def table(rows: list[Row]) -> list[str]:
    widths = [max(len("asked by"), *(len(row.words) for row in rows)), max(len(row.asked) for row in rows)]
    last = "who answered, and the source it saw"
    lines = [f"  {'asked by'.ljust(widths[0])}  {'at'.ljust(widths[1])}  {last}"]
    lines.append(f"  {'─' * widths[0]}  {'─' * widths[1]}  {'─' * len(last)}")
    return lines + [
        f"{'✓' if row.well else '✗'} {row.words.ljust(widths[0])}  {row.asked.ljust(widths[1])}  {row.outcome}"
        for row in rows
    ]


# The steps


def connect(lab: Lab) -> None:
    """Install the plugins on the throwaway host and connect both containers."""
    host = lab["host"]
    heading("2. Install the plugins on that host")
    show_lines(run(host, command("cni-py"), "install"))
    heading("3. Start portfwd: portmap asks it to relay what NAT cannot serve")
    start_publisher(host)
    heading(
        "4. Connect the containers: ADD runs the chain bridge (with host-local for the addresses), portmap, firewall, tuning"
    )
    say("first the plan only: the operations in the order in which ADD will apply them")
    publish = ["-p", f"{PORT}:{CONTAINER_PORT}"]
    show_lines(run(host, command("cni-py-exec"), "ADD", NETWORK, "web", *publish, "--plan"), PLAN_LINES)
    say("")
    show_lines(run(host, command("cni-py-exec"), "ADD", NETWORK, "web", *publish))
    say("")
    show_lines(run(host, command("cni-py-exec"), "ADD", NETWORK, "other"))


def start_publisher(host: Node) -> None:
    """`portfwd serve` in the background, until its host ends."""
    words = [command("portfwd"), "serve"]
    say(f"# portfwd serve &       control socket {PUBLISHER}")
    process = host.popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + START_S
    while host.run([command("portfwd"), "ls"]).returncode:
        if process.poll() is not None or time.monotonic() > deadline:
            raise DemoError("portfwd serve did not start")


def start_servers(lab: Lab) -> None:
    heading("5. Start a web server in web, and a second server (sidecar) in the same network namespace, as in a pod")
    lab.serve("web", CONTAINER_PORT)
    lab.serve("web", POD_PORT, says="sidecar", address="127.0.0.1")
    answer = lab.fetch("web", "127.0.0.1", POD_PORT)
    say(f"web asks 127.0.0.1:{POD_PORT} and {answer.name} answers: one network namespace, one loopback, two programs")


@dataclass(slots=True)
class Seen:
    """What the end of the demo tells of its middle."""

    rows: list[Row] = field(default_factory=list)
    model: str = ""  # of the host, while its containers were connected


def look(lab: Lab, seen: Seen) -> dict[int, str]:
    """Save the model of the host. Returns the addresses of the bridge, by family."""
    heading("6. Save what the host looks like now, to be drawn at the end")
    lab.name("client")  # no host knows the machines of its LAN by name; this one does, for the picture
    seen.model = run(lab["host"], command("cni-py"), "show", "--snapshot", "-")
    host, *others = json.loads(seen.model)["namespaces"]
    say(f"{len(host['links'])} links of the host, {len(others)} other namespaces: {len(seen.model) // 1000} KB of JSON")
    (bridge,) = (link for link in host["links"] if link["kind"] == "bridge")
    texts = [one["address"] for one in bridge["addresses"] if one["scope"] == "global"]
    return {6 if ":" in text else 4: text for text in texts}


def draw(model: str) -> None:
    """The picture of a saved model; on a terminal in colour."""
    heading("The network as it was in step 6, drawn by `cni-py show --from FILE`")
    environment = os.environ | {"COLUMNS": str(screen.width())}
    output = None if sys.stdout.isatty() else subprocess.PIPE
    words = [command("cni-py"), "show", "--from", "-"]
    done = subprocess.run(words, input=model, stdout=output, env=environment, encoding="utf-8", check=False)
    if done.returncode:
        raise DemoError(f"cni-py show ended with status {done.returncode}")
    if output is not None:
        screen.put(done.stdout.rstrip("\n"))


def fetch_everywhere(lab: Lab, gateway: dict[int, str], rows: list[Row]) -> None:
    heading(f"7. Fetch the page through the published port {PORT} on every path")
    for family in (4, 6):
        rows += [try_path(lab, path, family, gateway) for path in PATHS]
    if not all(row.well for row in rows):
        raise DemoError("a path to the published port failed: see the table")
    say(LEGEND)
    say(f"{len(rows)} pages fetched; the table at the end shows who asked, and which source address the server saw")


def publish_running(lab: Lab) -> None:
    """Publish a port of a running container whose server listens on the container's loopback only."""
    heading(
        f"8. Publish port {POD_PORT} of the running container: sidecar listens on 127.0.0.1 there, which NAT cannot reach"
    )
    spec = f"{SIDECAR_PORT}:{POD_PORT}"
    show_lines(run(lab["host"], command("portfwd"), "publish", "-p", spec, "--netns", lab["web"].netns))
    answer = lab.fetch("client", HOST[4], SIDECAR_PORT)
    if (answer.name, answer.peer) != ("sidecar", LOOPBACK[4]):
        raise DemoError(f"{answer.name} answered, and saw {answer.peer}")
    say(f"a machine on the LAN asks {HOST[4]}:{SIDECAR_PORT}, and {answer.name} answers")
    say(f"it saw the client address {answer.peer}: portfwd connects from inside the container's namespace")
    run(lab["host"], command("portfwd"), "rm", f"{SIDECAR_PORT}/tcp")


def interfaces() -> list[str]:
    """The names of all in this network namespace."""
    return [name for _, name in socket.if_nameindex()]


def disconnect(lab: Lab) -> None:
    """DEL both containers: their namespaces are empty again, and the host has only what all containers share."""
    heading("9. Disconnect: DEL undoes the chain, last plugin first")
    for name in ("other", "web"):
        run(lab["host"], command("cni-py-exec"), "DEL", NETWORK, name)
    left = [name for node in ("web", "other") for name in lab[node].python(interfaces) if name != "lo"]
    left += [name for name in lab["host"].python(interfaces) if name.startswith("veth")]
    if left:
        raise DemoError(f"interfaces are left: {', '.join(left)}")
    try:
        lab.fetch("client", HOST[4], PORT)
    except ConnectionRefusedError:
        say(f"{HOST[4]}:{PORT} is refused again; no veth is left. The bridge stays for the next containers")
    else:
        raise DemoError("the published port still answers")


def play(lab: Lab, seen: Seen) -> None:
    """All steps; `seen` gets the outcome of each path, and the model."""
    heading("1. A throwaway host")
    say("made of namespaces: a host, a machine on its LAN, and two containers without a network")
    connect(lab)
    start_servers(lab)
    gateway = look(lab, seen)
    fetch_everywhere(lab, gateway, seen.rows)
    publish_running(lab)
    disconnect(lab)


# Nothing is left


def machine_state() -> dict[str, object]:
    """The state of the machine itself that a faulty demo would change. It is only read."""
    paths = ("/run/netns", "/run/cni-py", "/var/lib/cni", "/var/lib/cni-py", "/etc/cni", "/opt/cni")
    return {
        "links": interfaces(),
        "nftables": snapshot.ruleset(["nft", "-s", "list", "ruleset"]),
        "mounts": Path("/proc/self/mountinfo").read_text(encoding="utf-8").count("\n"),
        "files": {path: snapshot.tree(path) for path in paths if os.path.exists(path)},
    }


def inhabited(namespaces: set[int]) -> int:
    """How many processes of this machine are in one of these network namespaces."""
    count = 0
    for process in Path("/proc").iterdir():
        try:
            count += process.name.isdigit() and (process / "ns/net").stat().st_ino in namespaces
        except OSError:
            continue
    return count


def prove_nothing_left(namespaces: set[int], before: dict[str, object]) -> None:
    heading("10. Nothing is left")
    processes = inhabited(namespaces)
    if processes:
        raise DemoError(f"{processes} processes are still in the namespaces of the demo")
    changes = snapshot.difference(before, machine_state())
    if changes:
        raise DemoError(f"the demo changed the machine itself:\n{changes}")
    say(f"no process is in any of the demo's {len(namespaces)} network namespaces any more")
    say("links, firewall, mounts and files of the machine itself are unchanged")


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def interrupt(number: int, _: object) -> None:
    """End the demo once: a second signal does not disturb the clean-up."""
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise SystemExit(INTERRUPTED + number)


def check_environment() -> None:
    if os.geteuid() != 0:
        raise EnvironmentLacks("network namespaces need root: run this with sudo")
    if not os.path.exists("/proc/self/ns/net"):
        raise EnvironmentLacks("there is no /proc here: mount -t proc proc /proc")
    for name in ("cni-py", "cni-py-exec", "portfwd"):
        command(name)


def guarded(action: Callable[[], None]) -> int:
    """Run a step and return its exit status. A failure is printed on stderr."""
    try:
        action()
    except screen.ReaderGone:
        pass  # nobody reads the output
    except EnvironmentLacks as error:
        print(f"demo: {error}", file=sys.stderr)
        return LACKING
    except (DemoError, LabError, OSError, subprocess.SubprocessError) as error:
        print(f"\ndemo: {error}", file=sys.stderr)
        return FAILED
    except SystemExit as end:
        print("\ndemo: interrupted", file=sys.stderr)
        return int(end.code or INTERRUPTED)
    return SUCCESS


def conclude(seen: Seen, status: int, seconds: float) -> None:
    """The picture; the table, which is last so that it stays on the screen; and one line with the result."""
    if seen.model:
        draw(seen.model)
    rows = seen.rows
    heading(f"The paths to host port {PORT}, which leads to port {CONTAINER_PORT} of web")
    screen.put("\n".join(table(rows)))
    answered = f"{sum(row.well for row in rows)} of {len(rows)} paths answered in {seconds:.0f} s"
    rest = "something failed: see above" if status else "nothing is left. Next: README, Use it"
    screen.put("\n" + "\n".join(screen.folded(f"{answered}; {rest}", screen.width())))


def main() -> int:
    argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None).parse_args()
    screen.prepare()
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as by nohup
            signal.signal(number, interrupt)
    begun = time.monotonic()
    status = guarded(check_environment)
    if status != SUCCESS:
        return status
    lab = Lab.from_yaml("demo.yaml")
    seen = Seen()

    held: list[int] = []  # a namespace that ends leaves its number to another one, which would be taken for it

    def perform() -> None:
        with lab:
            held.extend(os.dup(node.net) for node in lab.nodes.values())
            play(lab, seen)

    before = machine_state()
    status = guarded(perform)
    status = guarded(lambda: prove_nothing_left(lab.namespaces, before)) or status
    for fd in held:
        os.close(fd)
    if seen.rows:
        guarded(lambda: conclude(seen, status, time.monotonic() - begun))
    return status


if __name__ == "__main__":
    sys.exit(main())
