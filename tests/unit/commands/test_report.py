"""What commands say when a command line, or its reader, is not what it should be."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import cni_py
from cni_py.commands import main, report
from cni_py.commands.exec import parser

HOME = Path(cni_py.__file__).parent.parent


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["ADD", "n", "c", "--plann"], "cni-py-exec: unknown option --plann; did you mean --plan? ("),
        (["ADD", "n", "c", "--bindir=/x"], "did you mean --bin-dir?"),
        (["ADD", "n", "c", "--quux"], "unknown option --quux ("),
        (["ADD", "n", "c", "d"], "cni-py-exec: unexpected argument d ("),
        (["ADD"], "the following arguments are required: NETWORK"),
        (["AD", "n"], "invalid choice: 'AD'"),
    ],
)
def test_a_wrong_command_line_is_one_line(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parser().parse_intermixed_args(words)
    assert ended.value.code == report.USAGE
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_a_subcommand_speaks_for_itself(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main.parser().parse_args(["install", "--bindir", "x"])
    error = capsys.readouterr().err
    assert error.startswith(
        "cni-py install: unknown option --bindir; did you mean --bin-dir? (see `cni-py install --help`"
    )


def test_a_run_loads_its_own_command_alone() -> None:
    program = "import sys; from cni_py.commands import main; main.parser('gc'); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": str(HOME)}, capture_output=True, text=True, check=True
    )
    loaded = {name.removeprefix("cni_py.commands.") for name in done.stdout.split()}
    assert "gc" in loaded
    assert not loaded & {"show", "explain", "doctor", "restore", "ipam", "install", "adopt", "convert", "serve", "exec"}


LINES = (
    "from cni_py.commands import report as r; r.open_streams(); print('\\U0001f600'); print('z'); r.complain('heard')"
)
FULL = "p: cannot write to stdout: No space left on device\n"
CLOSED = "p: cannot write to stdout: Bad file descriptor\n"


def ended(redirection: str, *, asked: bool) -> tuple[int, str, str]:
    """Status, stdout and stderr of a program that prints two lines and says a word."""
    program = f"{LINES}; raise SystemExit(r.ended('p', 0, asked={asked}))"
    done = subprocess.run(
        ["sh", "-c", f'"$@" {redirection}', "sh", sys.executable, "-c", program],
        env={"PYTHONPATH": str(HOME), "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("redirection", "asked", "deed"),
    [
        ("", (0, "\\U0001f600\nz\n", "heard\n"), (0, "\\U0001f600\nz\n", "heard\n")),
        (">/dev/full", (1, "", "heard\n" + FULL), (0, "", "heard\n" + FULL)),
        (">&-", (1, "", "heard\n" + CLOSED), (0, "", "heard\n")),
        ("<&- >&- 2>&-", (1, "", ""), (0, "", "")),
        (">/dev/full 2>/dev/full", (1, "", ""), (0, "", "")),
    ],
    ids=["well", "full", "closed", "all closed", "both full"],
)
def test_output_that_is_lost_fails_who_was_asked_for_it(
    redirection: str, asked: tuple[int, str, str], deed: tuple[int, str, str]
) -> None:
    assert ended(redirection, asked=True) == asked
    assert ended(redirection, asked=False) == deed


def test_a_reader_that_has_gone_is_no_error_to_tell() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    program = f"{LINES}; raise SystemExit(r.ended('p', 0, asked=True))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(HOME)},
        stdout=writing,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"heard\n")


def test_what_is_opened_later_gets_no_closed_streams_number() -> None:
    program = f"{LINES}; import os; raise SystemExit(os.open('/dev/null', os.O_RDONLY))"
    closed = ["sh", "-c", '"$@" <&- >&- 2>&-', "sh", sys.executable, "-c", program]
    assert subprocess.run(closed, env={"PYTHONPATH": str(HOME)}, check=False).returncode == 3
