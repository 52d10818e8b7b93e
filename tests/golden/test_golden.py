"""What the Go plugins answered, case by case, beside what ours answer.

<plugin>.jsonl holds answers recorded from containernetworking/plugins at commit 3d27709f, in the form that replay.py describes.
Compared is the contract with a runtime: exit status, results, error codes, files, effects, and iptables' rules; not the
wording of messages. For Go's 999, its code for any failure, ours may answer one that says more (replay.py, SPECIFIC).
deviations.yaml names the cases where ours differ on purpose.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.lacking import need_root

HERE = Path(__file__).parent
PLUGINS = (
    "bridge",
    "host-local",
    "portmap",
    "loopback",
    "tuning",
    "bandwidth",
    "firewall",
    "static",
    "ptp",
    "macvlan",
    "tap",
    "sbr",
    "host-device",
    "dhcp",
)
UNSHARE = ("unshare", "--net", "--mount", "--propagation", "private")
TIMEOUT_S = 300


@dataclass(frozen=True, slots=True)
class Deviation:
    """Cases where ours differ on purpose."""

    match: str
    why: str

    def covers(self, case: str) -> bool:
        """Whether it speaks of `plugin/name`."""
        return re.fullmatch(self.match, case) is not None


DEVIATIONS = [Deviation(**entry) for entry in yaml.safe_load((HERE / "deviations.yaml").read_text())]


def cases_of(plugin: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (HERE / f"{plugin}.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def executables(our_bin_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our executables, alone in their directory."""
    directory = tmp_path_factory.mktemp("golden")
    for plugin in PLUGINS:
        shutil.copy2(our_bin_dir / plugin, directory)
    return directory


def replay(executables: Path, plugin: str, cases: list[dict[str, object]]) -> dict[str, list[str]]:
    """Name of a case -> what differs."""
    done = subprocess.run(
        [*UNSHARE, sys.executable, HERE / "replay.py", executables, plugin],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, list[str]] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize("plugin", PLUGINS)
def test_answers_as_recorded_from_go(plugin: str, executables: Path, request: pytest.FixtureRequest) -> None:
    need_root()
    cases = cases_of(plugin)
    found = replay(executables, plugin, cases)
    assert set(found) == {case["name"] for case in cases}
    names = {f"{plugin}/{name}": differences for name, differences in found.items()}
    unnamed, used = [], set()
    for name, differences in names.items():
        if differences:
            reasons = [deviation for deviation in DEVIATIONS if deviation.covers(name)]
            used.update(reasons)
            unnamed += [] if reasons else ["\n    ".join([name, *differences])]
    stale = [
        deviation.match
        for deviation in DEVIATIONS
        if deviation not in used and any(deviation.covers(name) for name in names)
    ]
    hold = sum(not differences for differences in names.values())
    numbers = {"hold": hold, "all": len(names), "named": len(names) - hold - len(unnamed)}
    request.node.user_properties.append(("golden", numbers))  # tests/conftest.py sums them up
    assert not unnamed, f"{len(unnamed)} cases differ and deviations.yaml has no reason:\n" + "\n".join(unnamed)
    assert not stale, f"every case of these entries of deviations.yaml holds: {stale}"


def test_deviations_speak_of_recorded_cases_and_say_why() -> None:
    names = [f"{plugin}/{case['name']}" for plugin in PLUGINS for case in cases_of(plugin)]
    assert len(set(names)) == len(names)
    for deviation in DEVIATIONS:
        assert any(deviation.covers(name) for name in names), f"no case is called {deviation.match}"
        assert deviation.why.endswith("."), deviation.match
