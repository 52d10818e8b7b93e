"""`cni-py convert`: a list as a chain, and back; what has to stay as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cni_py.commands import convert
from cni_py.commands.main import main
from cni_py.protocol import conflist

LIST: dict[str, object] = {
    "cniVersion": "1.1.0",
    "name": "n",
    "disableCheck": True,
    "plugins": [
        {"type": "bridge", "capabilities": {"ips": True, "mac": False}, "ipam": {"type": "host-local", "subnet": "é<"}},
        {"type": "portmap", "capabilities": {"portMappings": True}},
        {"type": "theirs", "capabilities": {"portMappings": True}},
    ],
}
JOINED = {"type": "chain", "capabilities": {"ips": True, "portMappings": True}, "plugins": LIST["plugins"]}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "10-n.conflist"
    path.write_text(json.dumps(LIST))
    return path


def converted(path: Path, to: str, capsys: pytest.CaptureFixture[str], *options: str) -> object:
    assert main(["convert", str(path), "--to", to, "--force", *options]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_list_becomes_a_chain_and_a_list_again(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chain = converted(file, "chain", capsys)
    assert chain == {**LIST, "plugins": [JOINED]}
    assert [*LIST] == [*dict(chain)]  # the order of the keys
    file.write_text(json.dumps(chain))
    assert converted(file, "chain", capsys) == chain
    assert converted(file, "list", capsys) == LIST
    assert [one["type"] for one in conflist.read(file).members] == ["bridge", "portmap", "theirs"]


def test_plugins_beside_a_chain_go_into_it_and_its_switches_go_to_the_list(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(json.dumps({"name": "n", "plugins": [JOINED, {"type": "tuning", "capabilities": {"mac": True}}]}))
    (chain,) = dict(converted(file, "chain", capsys))["plugins"]  # type: ignore[call-overload]  # JSON
    assert [one["type"] for one in chain["plugins"]] == ["bridge", "portmap", "theirs", "tuning"]
    assert chain["capabilities"] == {"ips": True, "portMappings": True, "mac": True}
    file.write_text(json.dumps({"name": "n", "plugins": [{**JOINED, "disableGC": True}]}))
    assert dict(converted(file, "list", capsys))["disableGC"] is True  # type: ignore[call-overload]  # as above
    file.write_text(json.dumps({**LIST, "plugins": [{**JOINED, "disableCheck": False}]}))
    assert converted(file, "list", capsys) == LIST


def test_a_file_is_replaced_and_the_one_before_kept(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = file.read_text()
    file.chmod(0o640)
    for number, to in enumerate(("chain", "list")):
        assert main(["convert", "n", "--conf-dir", str(file.parent), "--to", to, "--write", "--force"]) == 0
        kept = file.with_name(f"10-n.conflist.bak{number or ''}")
        assert str(kept) in capsys.readouterr().err
        assert (kept.stat().st_mode & 0o777, file.stat().st_mode & 0o777) == (0o640, 0o640)
    assert (file.parent / "10-n.conflist.bak").read_text() == before
    assert json.loads(file.read_text()) == LIST
    assert conflist.files(file.parent) == [file]  # no runtime reads what is kept
    assert main(["convert", str(file), "--to", "list", "--write"]) == 0
    assert "is a list already" in capsys.readouterr().out


REFUSED: dict[str, tuple[dict[str, object], str, int, str]] = {
    "nerdctl": ({**LIST, "nerdctlID": "0"}, "chain", 1, "is a network of nerdctl"),
    "podman": ({**LIST, "args": {"podman_labels": {}}}, "chain", 1, "is a network of podman"),
    "one plugin": ({"name": "n", "type": "bridge"}, "chain", 1, "holds one plugin"),
    "one chain": ({"name": "n", **JOINED}, "list", 1, "holds one plugin"),
    "a key of the chain": ({"name": "n", "plugins": [{**JOINED, "log": "x"}]}, "list", 1, 'has the key "log"'),
    "no plugins": ({"name": "n", "plugins": []}, "chain", 1, "has no plugins"),
    "no plugins in a chain": ({"name": "n", "plugins": [{"type": "chain"}]}, "list", 1, "has no plugins"),
    "a chain in a chain": (
        {"name": "n", "plugins": [{**JOINED, "plugins": [JOINED]}]},
        "list",
        1,
        "cannot hold another",
    ),
    "no executable": (LIST, "chain", 3, "there is no plugin chain in "),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_converted_is_named(
    file: Path, what: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    network, to, status, text = REFUSED[what]
    monkeypatch.setattr(convert, "BIN_DIRS", (str(file.parent),))
    if what != "no executable":
        (file.parent / "chain").touch()
    file.write_text(json.dumps(network))
    before = file.read_text()
    assert main(["convert", str(file), "--to", to, "--write"]) == status
    assert text in capsys.readouterr().err
    assert (file.read_text(), [*file.parent.glob("*.bak*")]) == (before, [])


def test_a_key_that_comes_twice_is_refused(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text('{"name": "n", "plugins": [{"type": "bridge", "mtu": 1, "mtu": 2}]}')
    assert main(["convert", str(file), "--to", "chain", "--force"]) == 1
    assert "mtu occurs more than once" in capsys.readouterr().err
