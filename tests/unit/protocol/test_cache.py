"""libcni's cache: a file as libcni writes it, read and written."""

import base64
import json
import stat
from pathlib import Path

import pytest

from cni_py.errors import CniError
from cni_py.protocol import cache
from cni_py.protocol.cache import Entry
from cni_py.protocol.gojson import Object

CONFIG = b'{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"bridge"}]}'
AS_LIBCNI_WRITES = {
    "kind": "cniCacheV1",
    "containerId": "c1",
    "config": base64.b64encode(CONFIG).decode(),
    "ifName": "eth0",
    "networkName": "net",
    "netns": "/run/netns/c1",
    "cniArgs": [["IgnoreUnknown", "1"]],
    "capabilityArgs": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]},
    "result": {"cniVersion": "1.0.0", "ips": [{"address": "192.0.2.2/24"}]},
}
ENTRY = Entry(
    "net",
    "c1",
    "eth0",
    config=CONFIG,
    netns="/run/netns/c1",
    cni_args=[("IgnoreUnknown", "1")],
    capability_args=Object(
        [("portMappings", [Object([("hostPort", 8080), ("containerPort", 80), ("protocol", "tcp")])])]
    ),
    result=Object([("cniVersion", "1.0.0"), ("ips", [Object([("address", "192.0.2.2/24")])])]),
)


def test_the_file_is_what_libcni_writes(tmp_path: Path) -> None:
    folder = tmp_path / "cni" / "results"
    cache.save(ENTRY, folder)
    path = folder / "net-c1-eth0"
    assert json.loads(path.read_text()) == AS_LIBCNI_WRITES
    assert (stat.S_IMODE(path.stat().st_mode), stat.S_IMODE(folder.stat().st_mode)) == (0o600, 0o700)
    assert [file.name for file in folder.iterdir()] == ["net-c1-eth0"]


def test_what_libcni_wrote_is_read(tmp_path: Path) -> None:
    (tmp_path / "net-c1-eth0").write_text(json.dumps(AS_LIBCNI_WRITES))
    assert cache.load("net", "c1", "eth0", tmp_path) == ENTRY
    assert cache.attachments("net", tmp_path) == [ENTRY]


def test_the_namespace_is_known_from_the_result_too() -> None:
    links = [Object([("name", "veth1"), ("sandbox", "")]), Object([("name", "eth0"), ("sandbox", "/proc/7/ns/net")])]
    result = Object([("interfaces", [*links])])
    assert Entry("net", "c1", "eth0", result=result).known_netns == "/proc/7/ns/net"
    assert Entry("net", "c1", "eth0", netns="/run/netns/c1", result=result).known_netns == "/run/netns/c1"
    assert Entry("net", "c1", "eth1", result=result).known_netns == ""
    assert Entry("net", "c1", "eth0").known_netns == ""


def test_an_attachment_that_is_unknown_is_none(tmp_path: Path) -> None:
    assert cache.load("net", "c1", "eth0", tmp_path / "missing") is None
    assert cache.attachments("net", tmp_path / "missing") == []
    cache.remove(ENTRY, tmp_path)


def test_hyphens_do_not_make_one_attachment_another(tmp_path: Path) -> None:
    cache.save(Entry("a-b", "c", "eth0"), tmp_path)
    assert cache.load("a", "b-c", "eth0", tmp_path) is None
    assert cache.attachments("a", tmp_path) == []
    assert [entry.key for entry in cache.attachments("a-b", tmp_path)] == [("a-b", "c", "eth0")]


def test_a_bare_result_of_an_old_libcni_is_read(tmp_path: Path) -> None:
    (tmp_path / "net-c1-eth0").write_text('{"cniVersion": "0.3.1"}')
    entry = cache.load("net", "c1", "eth0", tmp_path)
    assert entry is not None
    assert (entry.result, entry.config) == ({"cniVersion": "0.3.1"}, b"")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"kind": "other"}', '{"kind": "cniCacheV1", "config": "*"}'])
def test_a_damaged_file_is_an_error_that_names_it(text: str, tmp_path: Path) -> None:
    (tmp_path / "net-c1-eth0").write_text(text)
    with pytest.raises(CniError, match="net-c1-eth0 is damaged"):
        cache.load("net", "c1", "eth0", tmp_path)
    with pytest.raises(CniError, match="net-c1-eth0 is damaged"):
        cache.attachments("net", tmp_path)


def test_a_removed_entry_is_gone(tmp_path: Path) -> None:
    cache.save(ENTRY, tmp_path)
    cache.remove(ENTRY, tmp_path)
    cache.remove(ENTRY, tmp_path)
    assert cache.load("net", "c1", "eth0", tmp_path) is None
