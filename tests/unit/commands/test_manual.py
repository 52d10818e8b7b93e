"""Manual pages and completion: made of the parsers, and complete."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cni_py.commands import exec as by_hand
from cni_py.commands import main, manual
from portfwd.cli import command
from tests.lacking import missing

PROGRAMS = {"cni-py": main.parser, "cni-py-exec": by_hand.parser, "portfwd": command.described}
PAGES = manual.pages(make() for make in PROGRAMS.values())


def below(top: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The subcommands, and theirs."""
    for one, _ in manual.subcommands(top).values():
        yield one
        yield from below(one)


COMMANDS = {manual.page_name(one): one for make in PROGRAMS.values() for one in below(make())}


def shown(name: str) -> str:
    """The page as its reader sees it, roughly."""
    return (
        re.sub(r"^\\.(TP|PP|nf|fi|B ?|SH) ?", "", PAGES[name], flags=re.MULTILINE)
        .replace("\\-", "-")
        .replace("\\e", "\\")
    )


def test_every_command_has_a_page() -> None:
    assert {*COMMANDS, *PROGRAMS} == set(PAGES)
    assert {"cni-py-install", "cni-py-exec", "portfwd-serve", "cni-py-ipam-list"} <= set(PAGES)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_tells_every_option_and_example(name: str) -> None:
    parser = COMMANDS.get(name) or PROGRAMS[name]()
    page = shown(name)
    for action in parser._actions:
        if action.help is argparse.SUPPRESS or isinstance(action, argparse._SubParsersAction):
            continue
        assert action.help, f"{name}: {action.option_strings or action.dest} has no help"
        assert all(option in page for option in action.option_strings)
    for line in f"{parser.description}\n{parser.epilog or ''}".splitlines():
        if line.startswith("  "):
            assert line.strip() in page


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_no_line_that_roff_would_take_for_a_request(name: str) -> None:
    known = (".TH ", ".SH ", ".TP", ".B ", ".PP", ".nf", ".fi", "\\&", "\\-")  # the last two are characters
    assert all(line.startswith(known) for line in PAGES[name].splitlines() if line.startswith((".", "'", "\\")))


def test_every_command_is_listed_once_and_in_a_group() -> None:
    listed = [name for names in main.GROUPS.values() for name in names]
    assert sorted(listed) == sorted(manual.subcommands(main.parser()))
    overview = main.parser().format_help()
    assert all(f"\n  {name} " in overview for name in listed)


def test_without_a_command_it_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main([]) == 2
    assert "cni-py-exec runs a network's plugins by hand" in capsys.readouterr().out


def test_pages_are_written_where_man_finds_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["man", "--dir", str(tmp_path)]) == 0
    assert (tmp_path / "man8" / "cni-py-install.8").read_text() == PAGES["cni-py-install"]
    assert main.main(["man", "instal"]) == 2
    assert "did you mean install?" in capsys.readouterr().err
    for words in (["ipam", "list"], ["cni-py-ipam-list"]):
        assert main.main(["man", *words]) == 0
        assert capsys.readouterr().out == PAGES["cni-py-ipam-list"]


def shell(name: str) -> str:
    return shutil.which(name) or missing(f"the shell {name}")


def script(program: str, name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """The file that a user would make."""
    words = ["completion", name]
    if program == "portfwd":
        assert command.main(words) == 0
    else:
        assert main.main([*words, "--program", program]) == 0
    path = folder / f"{program}.{name}"
    path.write_text(capsys.readouterr().out)
    return path


CASES = [
    ("cni-py", "cni-py conv", "convert"),
    ("cni-py", "cni-py convert --conf", "--conf-dir"),
    ("cni-py", "cni-py ipam rel", "release"),
    ("cni-py", "cni-py ipam release --for", "--force"),
    ("cni-py-exec", "cni-py-exec --create", "--create-netns"),
    ("portfwd", "portfwd publish --repl", "--replace"),
    ("portfwd", "portfwd serve --take", "--take-over"),
]


@pytest.mark.parametrize(("program", "typed", "expected"), CASES)
def test_fish_completes(
    program: str, typed: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = script(program, "fish", tmp_path, capsys)
    words = [shell("fish"), "--no-config", "-c", 'source $argv[1]; complete -C "$argv[2]"', str(path), typed]
    done = subprocess.run(
        words, capture_output=True, text=True, check=True, env={"HOME": str(tmp_path), "TERM": "dumb"}
    )
    assert expected in [line.partition("\t")[0] for line in done.stdout.splitlines()]


BASH = """
source "$1"
read -ra COMP_WORDS <<<"$2"
COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMP_LINE=$2 COMP_POINT=${#2}
complete -p "${COMP_WORDS[0]}" | grep -oE "_shtab[a-z_]+" | { read -r f; $f; printf "%s\\n" "${COMPREPLY[@]}"; }
"""


@pytest.mark.parametrize(("program", "typed", "expected"), CASES)
def test_bash_completes(
    program: str, typed: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = script(program, "bash", tmp_path, capsys)
    done = subprocess.run(["bash", "-c", BASH, "bash", str(path), typed], capture_output=True, text=True, check=True)
    assert expected in done.stdout.split()


@pytest.mark.parametrize("program", PROGRAMS)
def test_zsh_loads_it(program: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = script(program, "zsh", tmp_path, capsys)
    assert path.read_text().startswith(f"#compdef {program}\n")
    loaded = "autoload -Uz compinit; compinit -u -d $2; source $1; print ${_comps[$3]}"
    words = [shell("zsh"), "-f", "-c", f"{loaded}", "zsh", str(path), str(tmp_path / "dump"), program]
    assert subprocess.run([words[0], "-n", str(path)], check=False).returncode == 0
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert "command not found" not in done.stderr
