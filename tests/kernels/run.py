"""What the development kernel lacks, on Debian's kernels: `make test-kernels`, and a smoke of it in .ci/run.

    python3 -m tests.kernels.run [SUITE ...]     all of it, on the kernels of these suites of Debian
    python3 -m tests.kernels.run --smoke         boot the first of them, and one test of a bridge's VLANs

In each machine, in this order, since what comes first must find a kernel that was used by nobody:

    plugins       every plugin once, its modules loaded by the kernel itself     tests/kernels/pristine.py
    marked tests  those that skip where the kernel lacks something               pytest -m debian_kernel
    firewalld     a published port while firewalld reloads
    sk_lookup     long ranges of ports, which a BPF program leads to one socket
    demo          a published port on every path                                 netns-fixtures/demo.py

The counts of each kernel are printed last. Exit status: 0, 1 when something has failed, 3 when there is no such machine here.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

from tests.kernels import emulator

DEBS = os.environ.get("CNI_PY_DEBS", str(emulator.ROOT / ".cache" / "debs"))
FOLDER = emulator.ROOT / ".cache" / "kernels"
PYTEST = ".cache/venv/bin/pytest -p no:cacheprovider -n 2 --dist loadgroup -q"
SMOKE = "tests/plugins/test_bridge_vlans.py -k without_ports"
SMOKE_S = 600  # on a busy machine; an idle one needs 20
LIMIT_S = 600  # of what is made ready here
# By name: what pytest is told
TESTS = {
    "marked tests": "-m debian_kernel",
    "firewalld": "-k firewalld tests/commands/test_restore_gaps.py",
    "sk_lookup": "-k 'ten_thousand or others_stay or host_decides or portmap_publishes' tests/portfwd/test_steering.py",
}


@dataclass(frozen=True, slots=True)
class Count:
    """Of one part on one kernel."""

    run: int
    failed: int
    skipped: int

    def __str__(self) -> str:
        more = [f"{number} {word}" for number, word in ((self.failed, "failed"), (self.skipped, "skipped")) if number]
        return ", ".join([f"{self.run - self.failed} passed", *more])


def install() -> None:
    """The emulator and what makes a first root, by apt; none of them starts anything."""
    lacking = sorted({package for program, package in emulator.PROGRAMS.items() if shutil.which(program) is None})
    if lacking:
        words = ["apt-get", "-qq", "-y", "--no-install-recommends", "install", *lacking]
        subprocess.run(
            words,
            check=True,
            stdout=subprocess.DEVNULL,
            env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
            timeout=LIMIT_S,
        )


def prepare(*tests: str) -> list[str]:
    """Do here what would take long there: our executables in a folder, and the code of the tests. The files of the tests."""
    programs = Path(sys.executable).parent
    words = ["install", "--launcher=python", "--bin-dir", str(FOLDER / "bin"), "--conf-dir", str(FOLDER / "net.d")]
    done = [subprocess.run([str(programs / "cni-py"), *words], capture_output=True, check=True, timeout=LIMIT_S)]
    found = []
    for one in tests:
        command = [str(programs / "pytest"), "--collect-only", "-q", *shlex.split(one)]
        done.append(subprocess.run(command, capture_output=True, check=True, timeout=LIMIT_S))
        lines = done[-1].stdout.decode().splitlines()
        files = dict.fromkeys(line.partition("::")[0] for line in lines if line.startswith("tests/") and "::" in line)
        found.append(" ".join(files))
    return found


def job(files: list[str]) -> str:
    """The commands of a whole run; what each says of itself goes to /run/share."""
    lines = [
        environment(),
        'echo "== Linux $(uname -r)"; uname -r >/run/share/release; status=0',
        "echo '-- plugins, and the modules that each has made the kernel load'",
        f".cache/venv/bin/python -m tests.kernels.pristine {FOLDER}/bin /run/share/plugins.json || status=1",
    ]
    lines += ["modprobe e1000", "export CNI_PY_SPARE_CARD=$(ls /sys/bus/pci/drivers/e1000/0000:*/net)"]
    for (name, words), listed in zip(TESTS.items(), files, strict=True):
        chosen = words if ".py" in words else f"{words} {listed}"
        lines += [f"echo '-- {name}'", f"{PYTEST} {chosen} --junitxml='/run/share/{name}.xml' || status=1"]
    lines += [
        "echo '-- demo'",
        ".cache/venv/bin/python netns-fixtures/demo.py >/run/share/demo 2>&1 && touch /run/share/demo.ok || status=1",
        "tail -n 1 /run/share/demo",
        "exit $status",
    ]
    return "\n".join(lines)


def environment() -> str:
    """What tests are told by variables. They are run directly: a compiled launcher is no matter of the kernel."""
    values = {
        "CI": "true",
        "CNI_PY_BIN_DIR": f"{FOLDER}/bin",
        "CNI_PY_DEBS": DEBS,
        "CNI_PY_SLOWNESS": "5",
        "CNI_PY_WAY": "direct",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return "export " + " ".join(f"{name}={shlex.quote(value)}" for name, value in values.items())


def counts(share: Path) -> dict[str, Count | str]:
    """What the parts of a run have left in its folder."""
    found: dict[str, Count | str] = {}
    try:
        plugins = json.loads((share / "plugins.json").read_text())
        found["plugins"] = Count(plugins["tests"], len(plugins["failed"]), 0)
    except OSError:
        found["plugins"] = "did not end"
    for name in TESTS:
        try:
            suite = ElementTree.parse(share / f"{name}.xml").getroot()[0]
        except (OSError, ElementTree.ParseError):
            found[name] = "did not end"
            continue
        tests, failures, errors, skipped = (
            int(suite.get(key, "0")) for key in ("tests", "failures", "errors", "skipped")
        )
        found[name] = Count(tests - skipped, failures + errors, skipped)
    found["demo"] = "well" if (share / "demo.ok").exists() else "FAILED"
    return found


def run(suite: str, commands: str) -> tuple[int, str, dict[str, Count | str]]:
    """One kernel: exit status, its version and how long it took, and the counts."""
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="cni-py-kernels-") as share:
        status = emulator.run(suite, commands, files=Path(share))
        release = (Path(share) / "release").read_text().strip()
        return status, f"Linux {release} ({time.monotonic() - begin:.0f} s)", counts(Path(share))


def smoke() -> int:
    """The first kernel, and one test."""
    prepare(SMOKE)
    commands = f"{environment()}\n{PYTEST} -n 0 {SMOKE}"
    return emulator.run(emulator.SUITES[0], commands, time_s=SMOKE_S)


def main() -> int:
    """All kernels, or those of the suites that are named."""
    os.chdir(Path(emulator.ROOT))
    os.environ.pop("CNI_GO_BIN_DIR", None)
    try:
        install()
        if sys.argv[1:] == ["--smoke"]:
            return smoke()
        commands = job(prepare(*TESTS.values()))
        found = [run(suite, commands) for suite in sys.argv[1:] or emulator.SUITES]
    except emulator.Stuck as error:
        print(f"test-kernels: {error}", file=sys.stderr)
        return 1
    except (emulator.Unavailable, OSError, subprocess.SubprocessError) as error:
        print(f"test-kernels: not run: {error}", file=sys.stderr)
        return 3
    for _, kernel, parts in found:
        print(f"\n{kernel}")
        for name, count in parts.items():
            print(f"    {name:14} {count}")
    return max(status for status, _, _ in found)


if __name__ == "__main__":
    sys.exit(main())
