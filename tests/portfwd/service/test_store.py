"""Mappings on disk."""

from __future__ import annotations

import json
import logging
import os
import stat
from pathlib import Path

import pytest

from portfwd.errors import PortfwdError
from portfwd.mapping import Mapping, Place, Target
from portfwd.service.store import Store

CONTAINERS = "attachment 0123456789abcdef"


def mapping(name: str, port: int = 8080, owner: str = "") -> Mapping:
    targets = (Target("192.0.2.2", 80), Target("::1", 80, Place(path="/run/netns/web")))
    return Mapping(name, "tcp", ("0.0.0.0", "::1"), port, port, targets, allow=("10.0.0.0/8",), owner=owner)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "state"))


def files(store: Store) -> list[str]:
    return sorted(os.listdir(store.folder))


def test_what_was_saved_is_loaded(store: Store) -> None:
    assert store.load() == []
    first, second = mapping("web"), mapping("db", 5432, CONTAINERS)
    store.save([first, second])
    assert store.load() == [second, first]
    other = mapping("web", 8081)
    store.save([other])
    assert store.load() == [second, other]
    store.forget([first, mapping("never-there")])
    assert store.load() == [second]


def test_nobody_else_may_look(store: Store) -> None:
    before = os.umask(0)
    try:
        store.save([mapping("web")])
    finally:
        os.umask(before)
    for folder in (store.folder, os.path.dirname(store.folder)):
        assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(f"{store.folder}/web.json").st_mode) == 0o600
    assert files(store) == ["web.json"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"[" * 100_000,
        b'{"schema": 2}',
        b'{"schema": 1}',
        b'{"schema": 1, "mapping": {"id": "bad"}}',
        json.dumps({"schema": 1, "mapping": mapping("other").to_json()}).encode(),
        b" " * (1 << 21),
    ],
)
def test_a_damaged_file_is_named_in_the_log_and_stays_and_costs_no_other(
    store: Store, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    caplog.set_level(logging.ERROR, "portfwd")
    store.save([mapping("a"), mapping("z")])
    Path(store.folder, "bad.json").write_bytes(content)
    assert [one.id for one in store.load()] == ["a", "z"]
    assert files(store) == ["a.json", "bad.json", "z.json"]
    assert Path(store.folder, "bad.json").read_bytes() == content


def test_what_is_no_file_is_not_followed_and_not_waited_for(store: Store, tmp_path: Path) -> None:
    store.save([mapping("a")])
    os.mkfifo(f"{store.folder}/fifo.json")
    os.mkdir(f"{store.folder}/folder.json")
    os.symlink(f"{store.folder}/a.json", f"{store.folder}/link.json")
    assert [one.id for one in store.load()] == ["a"]
    assert len(files(store)) == 4


def test_what_a_killed_service_left_half_written_goes(store: Store) -> None:
    store.save([mapping("a")])
    Path(store.folder, ".b.tmp").write_bytes(b"{")
    assert [one.id for one in store.load()] == ["a"]
    assert files(store) == ["a.json"]


def test_what_containers_and_processes_had_ends_with_the_boot(store: Store) -> None:
    store.save([mapping("person"), mapping("container", owner=CONTAINERS), mapping("docker", owner="pid 7 7")])
    for name in ("person", "container", "docker"):
        path = Path(store.folder, f"{name}.json")
        path.write_text(path.read_text().replace('"boot": "', '"boot": "0'))
    assert [one.id for one in store.load()] == ["person"]
    assert files(store) == ["person.json"]


def test_a_disk_that_refuses_is_an_error_in_words(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("no folder")
    store = Store(str(tmp_path / "state"))
    with pytest.raises(PortfwdError, match="cannot keep mappings"):
        store.save([mapping("a")])
    with pytest.raises(PortfwdError, match="cannot read the mappings"):
        store.load()
