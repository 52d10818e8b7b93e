"""The host-wide settings: what the file may say, and the compiled copy."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cni_py import backend, files
from cni_py.errors import InvalidNetworkConfig


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "config.yaml"
    monkeypatch.setattr(backend, "PATH", str(path))
    monkeypatch.setattr(files, "run_dir", lambda: str(tmp_path / "run"))
    return path


def test_without_a_file_the_backend_is_nftables_and_nothing_is_written(config: Path) -> None:
    assert backend.chosen() == "nftables"
    assert backend.chosen("iptables") == "iptables"
    assert not (config.parent / "run").exists()


@pytest.mark.parametrize("text", ["", "# nothing\n", "backend: nftables\n"])
def test_a_file_may_say_nothing(config: Path, text: str) -> None:
    config.write_text(text)
    assert backend.chosen() == "nftables"


def test_a_changed_file_is_compiled_again(config: Path) -> None:
    config.write_text("backend: iptables\n")
    assert backend.chosen() == "iptables"
    copy = config.parent / "run/config.json"
    assert json.loads(copy.read_text())["backend"] == "iptables"
    assert copy.stat().st_mode & 0o777 == 0o600
    before = copy.stat().st_ino
    assert backend.chosen() == "iptables"
    assert copy.stat().st_ino == before  # it was read, not made again
    config.write_text("backend: nftables\n")
    assert backend.chosen() == "nftables"


def test_what_to_do_about_listeners_of_the_host_is_a_key(config: Path) -> None:
    assert backend.load().host_listener == "warn"
    config.write_text("hostListener: refuse\n")
    assert (backend.load().host_listener, backend.chosen()) == ("refuse", "nftables")
    assert backend.load().host_listener == "refuse"  # from the copy
    config.write_text("backend: iptables\n")
    copy = config.parent / "run/config.json"
    backend.load()
    older = json.loads(copy.read_text())
    del older["hostListener"]  # as the version before wrote it
    copy.write_text(json.dumps(older))
    assert (backend.load().host_listener, backend.chosen()) == ("warn", "iptables")
    assert backend.for_host_listener("refuse") == "refuse"
    with pytest.raises(InvalidNetworkConfig, match="one of warn, refuse"):
        backend.for_host_listener("Refuse")


@pytest.mark.parametrize("damage", ["", "{", '{"backend": "iptables"}', '{"source": 1, "backend": []}'])
def test_a_damaged_copy_is_made_again(config: Path, damage: str) -> None:
    config.write_text("backend: iptables\n")
    backend.load()
    (config.parent / "run/config.json").write_text(damage)
    assert backend.chosen() == "iptables"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("# a\nbakend: iptables\n", "line 2: unknown key 'bakend'"),
        ("backend: nftables\nhostListener: no\n", "line 2: hostListener is one of warn, refuse, not 'no'"),
        ("backend: ebtables\n", "line 1: backend is one of nftables, iptables, not 'ebtables'"),
        ("backend: [iptables]\n", "line 1: backend is one of nftables, iptables, not a list or mapping"),
        ("backend: iptables\nbackend: nftables\n", "line 2: backend is there twice"),
        ("- backend\n", "line 1: settings are"),
        ("\n\nbackend: {\n", "line 4: "),
        ("a: &a [*a, *b]\n", "line 1: "),
    ],
)
def test_a_mistake_is_an_error_that_names_the_line(config: Path, text: str, said: str) -> None:
    config.write_text(text)
    with pytest.raises(InvalidNetworkConfig, match="line") as refused:
        backend.load()
    assert said in str(refused.value)
    assert not os.path.exists(config.parent / "run/config.json")


def test_a_file_that_is_not_text_is_an_error(config: Path) -> None:
    config.write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidNetworkConfig, match="UTF-8"):
        backend.load()
