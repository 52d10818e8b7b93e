"""What commands say when a command line, or its reader, is not what it should be."""

from __future__ import annotations

import io
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
        (["ADD", "n", "c", "--plann"], "cni-py-exec: there is no option --plann; did you mean --plan? ("),
        (["ADD", "n", "c", "--bindir=/x"], "did you mean --bin-dir?"),
        (["ADD", "n", "c", "--quux"], "there is no option --quux ("),
        (["ADD", "n", "c", "d"], "cni-py-exec: d is too much ("),
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
        "cni-py install: there is no option --bindir; did you mean --bin-dir? (`cni-py install --help`"
    )


def run(program: str, words: list[str]) -> tuple[int, str]:
    """Exit status and stderr of an installed command whose stdout nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [Path(sys.executable).with_name(program), *words],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=60,
    )
    os.close(writing)
    return done.returncode, done.stderr


def test_a_reader_that_has_gone_is_no_error_to_tell() -> None:
    answers = (
        "from cni_py.commands.report import Answers; a = Answers(); a.say('x'); a.say('y'); print('z'); print(a.lost)"
    )
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-c", answers],
        env={"PYTHONPATH": str(HOME)},
        stdout=writing,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")
    status, error = run("cni-py", ["install", "--dry-run", "--bin-dir", "/nowhere/bin", "--conf-dir", "/nowhere/conf"])
    assert "Traceback" not in error
    assert "Broken pipe" not in error
    assert status in (0, 1, 3)


def test_a_terminal_that_knows_ascii_alone_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    answers = report.Answers()
    answers.say("naïve \U0001f600")
    assert (raw.getvalue(), answers.lost) == (b"na\\xefve \\U0001f600\n", "")


def test_nobody_on_stderr_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w", buffering=1) as closed:
        monkeypatch.setattr(sys, "stderr", closed)
        report.complain("x")
        monkeypatch.undo()
        os.dup2(os.open(os.devnull, os.O_WRONLY), writing)
    monkeypatch.setattr(sys, "stderr", None)
    report.complain("x")
