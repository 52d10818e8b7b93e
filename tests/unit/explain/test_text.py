"""The answer as text: widths, colours, names that others chose; and `cni-py explain` on a saved model."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from cni_py.commands.main import main
from cni_py.explain import text
from cni_py.host import saved
from cni_py.host.model import Host, Process, Socket
from tests.unit.explain.models import NOTHING, explained, host, ruleset
from tests.unit.host.worlds import with_container, with_root

EVIL = "\x1b[31mred\x07\n\u202eevil"


def hostile() -> Host:
    """Container, program and comment have names that a terminal would obey."""
    model = host()
    sockets = (Socket("tcp", "127.0.0.1", 80, pid=9, program=EVIL),)
    model = with_container(model, 1, sockets=sockets, processes=(Process(9, EVIL, "", 1),))
    web = replace(model.attachments[0], container_id=EVIL)
    return replace(
        model, attachments=(web,), ports=(replace(model.ports[0], container_id=EVIL, network=EVIL, place=EVIL),)
    )


@pytest.mark.parametrize("detail", [text.MINIMAL, text.NORMAL, text.DETAILED])
@pytest.mark.parametrize("width", [40, 72, 100, 200])
def test_names_of_others_are_text(width: int, detail: int) -> None:
    model = hostile()
    shown = text.render(model, explained(model), detail=detail, width=width)
    assert all(char.isprintable() or char == "\n" for char in shown)
    assert r"\x1b[31mred" in shown.replace("\n", "").replace(" ", "")
    as_json = json.dumps(text.as_json(explained(model)))
    assert "\x1b" not in as_json


@pytest.mark.parametrize("width", [40, 60, 100, 200])
def test_lines_fit(width: int) -> None:
    model = host()
    shown = text.render(model, explained(model), detail=text.DETAILED, width=width)
    assert max(map(len, shown.splitlines())) <= width


def test_colours_are_the_same_text() -> None:
    model = with_root(host(), nftables=NOTHING)
    plain, coloured = (text.render(model, explained(model), colour=colour) for colour in (False, True))
    assert re.sub(r"\x1b\[[0-9]*m", "", coloured) == plain
    assert "\x1b[31mfails" in coloured


def test_minimal_ends_in_the_command_that_mends() -> None:
    model = with_root(host(), nftables=NOTHING)
    shown = text.render(model, explained(model), detail=text.MINIMAL)
    assert shown.splitlines()[-1] == "mend:   cni-py restore"
    assert "The way of" not in shown


RANDOM = [
    {"match": {"op": "==", "left": {"numgen": {"mode": "random", "mod": 2, "offset": 0}}, "right": 0}},
    {"drop": None},
]
CHAIN = {"family": "ip", "table": "t", "name": "forward", "handle": 30, "type": "filter", "hook": "forward", "prio": 0}
CHANCE = ruleset(
    {"chain": {**CHAIN, "policy": "accept"}},
    {"rule": {"family": "ip", "table": "t", "chain": "forward", "handle": 31, "expr": RANDOM}},
)


@pytest.mark.parametrize(
    ("nftables", "words", "status"),
    [
        (ruleset(), ["8080"], 0),
        (ruleset(), ["8080", "--from", "lan"], 0),
        (ruleset(), ["8080/udp"], 1),
        (NOTHING, ["8080"], 1),
        (NOTHING, ["8080", "--from", "db", "--minimal"], 1),
        (CHANCE, ["8080", "--detailed"], 3),
        (ruleset(), ["http"], 2),
        (ruleset(), ["8080", "--from", "nobody"], 2),
        (ruleset(), ["8080", "--from", "2001:db8::1"], 2),  # there is no IPv6 here
    ],
    ids=lambda value: "" if isinstance(value, str) else None,
)
def test_the_exit_status_is_the_verdict(
    nftables: str, words: list[str], status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "host.json"
    saved.write(str(path), with_root(host(), nftables=nftables))
    assert main(["explain", *words, "--model", str(path)]) == status
    said = capsys.readouterr()
    assert (said.err.count("\n") == 1) == (status == 2), said.err


def test_json_is_one_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "host.json"
    saved.write(str(path), host())
    assert main(["explain", "8080", "--json", "--model", str(path)]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["verdict"] == "answers"
    assert [client["kind"] for client in answer["clients"]] == [
        "lan",
        "host",
        "loopback",
        "neighbour",
        "itself",
        "loopback",
    ]


def test_a_model_that_is_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "host.json"
    model = host()
    wrong = replace(model.root.routes[0], destination="nonsense")
    saved.write(str(path), with_root(model, routes=(wrong,)))
    assert main(["explain", "8080", "--model", str(path)]) == 2
    assert "cannot be followed" in capsys.readouterr().err
