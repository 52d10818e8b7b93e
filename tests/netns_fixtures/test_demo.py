"""The demo: it shows every path, and leaves nothing, twice in a row and interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import picture
import pytest
from demo import Row, table

DEMO = Path(__file__).parents[2] / "netns-fixtures" / "demo.py"
LEFT_NOTHING = "no process is in any of the demo's"
ENOUGH_S = 60.0
needs_commands = pytest.mark.skipif(
    not Path(sys.executable).with_name("cni-py-exec").exists() and not os.environ.get("CI"),
    reason="the package is not installed in this environment",
)


@needs_commands
def test_demo_fetches_a_page_on_every_path_twice_in_a_row() -> None:
    for _ in range(2):
        done = subprocess.run([sys.executable, DEMO], capture_output=True, text=True, timeout=ENOUGH_S, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert LEFT_NOTHING in done.stdout
        rows = [line for line in done.stdout.splitlines() if line.startswith(("✓", "✗"))]
        assert len(rows) == 10
        assert all(row.startswith("✓") for row in rows)
        assert [row for row in rows if "relayed by portfwd" in row] == [row for row in rows if "[::1]:8080" in row]


@needs_commands
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", ["1.", "4.", "7."])
def test_demo_that_is_interrupted_leaves_nothing(step: str, number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, DEMO], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            if line.startswith(step):
                demo.send_signal(number)
                break
        output = demo.stdout.read()
        assert demo.wait(ENOUGH_S) == 128 + number, output
    assert "interrupted" in output
    assert LEFT_NOTHING in output


def test_picture_shows_every_namespace_and_link() -> None:
    client = [picture.Link("eth0", "veth", "", ("198.51.100.7/24",), ())]
    host = [
        picture.Link("lan0", "veth", "", ("198.51.100.1/24",), ()),
        picture.Link("cni0", "bridge", "", ("192.0.2.1/24",), ()),
        picture.Link("vetha", "veth", "cni0", (), ()),
        picture.Link("vethb", "veth", "cni0", (), ()),
    ]
    lines = picture.draw(
        client, host, {"one": ["eth0    192.0.2.2/24"], "two": ["eth0    192.0.2.3/24"]}, ["published: 80"]
    )
    assert "\n".join(lines) == PICTURE.strip("\n")


PICTURE = """
┌─ client (a machine on the LAN) ─┐
│ eth0    198.51.100.7/24         │
└──────────────────────────────┬──┘
                               │ LAN (veth pair)
┌─ host (network namespace) ───┴────────────────────────┐
│ lan0    198.51.100.1/24                               │
│         published: 80                                 │
│                                                       │
│ cni0    bridge, the containers' gateway: 192.0.2.1/24 │
│                   ├─────────────────────────┐         │
│                   │ vetha                   │ vethb   │
│                   │                         │         │
└───────────────────┼─────────────────────────┼─────────┘
┌─ one (container) ─┴──┐  ┌─ two (container) ─┴──┐
│ eth0    192.0.2.2/24 │  │ eth0    192.0.2.3/24 │
└──────────────────────┘  └──────────────────────┘
"""


def test_table_marks_what_is_not_as_it_must_be() -> None:
    lines = table([Row("a", "192.0.2.1:80", "page", True), Row("bb", "[::1]:80", "no page", False)])
    assert lines[2:] == ["✓ a   192.0.2.1:80  page", "✗ bb  [::1]:80      no page"]
