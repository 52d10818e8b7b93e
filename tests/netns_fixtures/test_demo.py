"""The demo: it shows every path, and leaves nothing, twice in a row and interrupted."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import termios
from pathlib import Path

import pytest
import screen
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
        assert [row for row in rows if row.endswith("by portfwd")] == [row for row in rows if "[::1]:8080" in row]


@needs_commands
@pytest.mark.parametrize("columns", [80, 100])
def test_demo_fits_the_terminal_and_ends_with_its_table_and_what_was_shown(columns: int) -> None:
    lines = on_a_terminal(columns, 24)
    assert not [line for line in lines if len(line) > columns]
    said = [line for line in lines if line]
    assert re.fullmatch(r"10 of 10 paths answered in \d+ s; nothing is left\. Next: README, Use it", said[-1])
    assert [line[0] for line in said[-11:-1]] == ["✓"] * 10
    drawn = said[said.index("The network as it was in step 6, drawn by `cni-py show --from FILE`") :]
    assert [line for line in drawn if re.search(r"[├└]─ veth\w{8} ── (web|other)  ", line)]


def on_a_terminal(columns: int, rows: int) -> list[str]:
    """The demo's lines as a terminal of that size gets them, without what makes headings bold."""
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (rows, columns))
    environment = {name: text for name, text in os.environ.items() if name not in ("COLUMNS", "LINES")}
    with (
        open(ours, "rb", buffering=0) as terminal,
        subprocess.Popen([sys.executable, DEMO], stdout=theirs, stderr=theirs, env=environment) as demo,
    ):
        os.close(theirs)
        output = b""
        with contextlib.suppress(OSError):  # EIO: nobody has the other end any more
            while chunk := terminal.read(4096):
                output += chunk
        assert demo.wait(ENOUGH_S) == 0, output.decode()
    assert b"\033[1m" in output
    return re.sub(r"\033\[[\d;]*m", "", output.decode()).splitlines()


@needs_commands
def test_demo_speaks_ascii_where_there_is_nothing_else() -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, DEMO], capture_output=True, env=environment, timeout=ENOUGH_S, check=False)
    text = (done.stdout + done.stderr).decode("ascii")
    assert done.returncode == 0, text
    assert "10 of 10 paths" in text
    assert "\n* host lo    [::1]:8080 " in text
    assert "\n|- lan0 -- client  " in text


@needs_commands
@pytest.mark.parametrize("step", ["1.", "6."])
def test_demo_whose_reader_has_had_enough_ends_silently_and_leaves_nothing(step: str) -> None:
    mark = f"demo-of-{os.getpid()}-{step}"
    pipe = subprocess.PIPE
    environment = os.environ | {"CNI_PY_TEST_MARK": mark}
    with subprocess.Popen([sys.executable, DEMO], stdout=pipe, stderr=pipe, text=True, env=environment) as demo:
        assert demo.stdout is not None
        assert demo.stderr is not None
        assert next(line for line in demo.stdout if line.startswith(step))
        assert marked(mark)
        demo.stdout.close()
        assert demo.stderr.read() == ""
        assert demo.wait(ENOUGH_S) == 0
    assert marked(mark) == []


def marked(mark: str) -> list[str]:
    """Processes that were started with the mark in their environment: the demo, and the keeper that all of its lab hangs on."""
    found = []
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if process.name.isdigit() and mark.encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text())
    return found


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


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("short", ["short"]),
        (
            "  at 127.0.0.1:8080, [::1]:8080 on this host",
            ["  at 127.0.0.1:8080,", "    [::1]:8080 on this", "    host"],
        ),
        ("no-break-at-hyphens-here", ["no-break-at-hyphens-h", "  ere"]),
    ],
)
def test_lines_are_folded_between_words(line: str, expected: list[str]) -> None:
    assert screen.folded(line, 22 if line.startswith(" ") else 21) == expected


def test_table_marks_what_is_not_as_it_must_be() -> None:
    lines = table([Row("a", "192.0.2.1:80", "page", True), Row("bb", "[::1]:80", "no page", False)])
    assert lines[2:] == ["✓ a         192.0.2.1:80  page", "✗ bb        [::1]:80      no page"]
