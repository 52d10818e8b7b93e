"""Configuration lists as libcni reads them, and what a plugin receives."""

import json
import os
import threading
from pathlib import Path

import pytest

from cni_py.errors import CniError
from cni_py.protocol import conflist
from cni_py.protocol.gojson import Object, decode

PLUGIN = {"type": "bridge", "capabilities": {"portMappings": True, "ips": False}, "mtu": 1400}


def network(name: str = "one", **keys: object) -> dict[str, object]:
    return {"cniVersion": "1.0.0", "name": name, "plugins": [PLUGIN], **keys}


def parsed(value: object) -> conflist.Network:
    return conflist.parse(json.dumps(value).encode(), "a.conflist")


def write(folder: Path, name: str, value: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(value if isinstance(value, str) else json.dumps(value))


def obj(value: object) -> Object:
    found = decode(json.dumps(value).encode())
    assert isinstance(found, Object)
    return found


def test_a_pipe_that_is_named_by_hand_is_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    text = b'{"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "bridge"}]}'
    writer = threading.Thread(target=lambda: pipe.write_bytes(text))
    writer.start()
    assert conflist.read(pipe, piped=True).types == ["bridge"]
    writer.join()
    with pytest.raises(CniError, match="not an ordinary file"):
        conflist.read(pipe)


def test_a_single_plugin_is_a_list_of_one() -> None:
    found = parsed({"cniVersion": "0.4.0", "name": "single", "type": "bridge"})
    assert (found.name, found.cni_version, found.types) == ("single", "0.4.0", ["bridge"])
    again = conflist.parse(found.text, "the cache")
    assert (again.name, again.cni_version, again.types) == ("single", "0.4.0", ["bridge"])


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ({}, "1.0.0"),
        ({"cniVersions": ["0.4.0", "1.1.0", "9.0.0"]}, "1.1.0"),
        ({"cniVersion": "1.1.0", "cniVersions": ["0.4.0"]}, "1.1.0"),
        ({"cniVersion": ""}, "0.1.0"),
        ({"cniVersion": "9.9.9"}, "9.9.9"),  # each plugin refuses it in its own words
    ],
)
def test_the_highest_version_we_know_is_chosen(keys: dict[str, object], wanted: str) -> None:
    assert parsed(network() | keys).cni_version == wanted


def test_switches_may_be_text() -> None:
    found = parsed(network(disableCheck="TRUE", disableGC=True))
    assert (found.disable_check, found.disable_gc) == (True, True)
    assert not parsed(network()).disable_check


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("[]", "must be a JSON object"),
        ("{", "a.conflist"),
        (json.dumps(network("")), 'has no "name"'),
        (json.dumps(network("a/b")), "invalid characters found in network name"),
        (json.dumps(network(plugins=[{}])), 'has no "type"'),
        (json.dumps(network(plugins="bridge")), 'plugins must be a list [...], not "bridge"'),
        (json.dumps(network(disableCheck="perhaps")), "disableCheck"),
        ('{"name": "n", "plugins": [\n{"type": "t",\n"ipam": []}]}', "a.conflist, line 3: ipam must be an object"),
        (
            '{"name": "n", "plugins": [\n{"type": "t",\n"capabilities": {"ips": 1}}]}',
            "a.conflist, line 3: ips must be true or false",
        ),
    ],
)
def test_a_broken_list_is_an_error_with_its_file(value: str, says: str) -> None:
    with pytest.raises(CniError) as failure:
        conflist.parse(value.encode(), "a.conflist")
    assert says in str(failure.value)
    assert "a.conflist" in str(failure.value)


def test_what_is_no_file_does_not_hang_the_search(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.conflist")
    (tmp_path / "b.conflist").symlink_to("/dev/zero")
    write(tmp_path, "c.conflist", network("c"))
    assert len(conflist.find(tmp_path, "c").broken) == 2
    with pytest.raises(CniError, match=r"cannot read .*/a\.conflist: not an ordinary file"):
        conflist.find(tmp_path, "other")


def test_a_name_is_looked_up_in_lexical_order_lists_first(tmp_path: Path) -> None:
    write(tmp_path, "00.conf", {"name": "one", "type": "loopback", "cniVersion": "1.0.0"})
    write(tmp_path, "20.conflist", network(cniVersion="0.4.0"))
    write(tmp_path, "10.conflist", network())
    write(tmp_path, "05.conflist.bak", "broken")
    write(tmp_path, "30.json", {"name": "two", "type": "bridge"})
    assert conflist.find(tmp_path, "one").network.source == str(tmp_path / "10.conflist")
    assert conflist.find(tmp_path, "two").network.source == str(tmp_path / "30.json")


def test_no_such_network_says_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(conflist.NoSuchNetwork, match="there is none at all"):
        conflist.find(tmp_path / "missing", "one")
    write(tmp_path, "10.conflist", network())
    with pytest.raises(conflist.NoSuchNetwork, match="there are: one"):
        conflist.find(tmp_path, "two")
    with pytest.raises(conflist.NoSuchNetwork, match="there is no file"):
        conflist.read(tmp_path / "20.conflist")


def test_a_broken_file_stands_in_the_way_of_its_own_network_alone(tmp_path: Path) -> None:
    write(tmp_path, "10.conflist", '{"name": "broken",\n "plugins": [}')
    write(tmp_path, "20.conflist", network())
    found = conflist.find(tmp_path, "one")
    assert (found.network.name, len(found.broken)) == ("one", 1)
    assert f'{tmp_path}/10.conflist, line 2, column 14: a value is expected, not "}}"' in str(found.broken[0])
    with pytest.raises(
        CniError, match=r'network "broken" may be in a file that cannot be used: .*10.conflist, line 2'
    ) as failure:
        conflist.find(tmp_path, "broken")
    assert failure.value.code == 6


def test_where_to_get_our_network_is_said_where_it_is_not(tmp_path: Path) -> None:
    with pytest.raises(conflist.NoSuchNetwork, match=r"`cni-py install .*` writes one"):
        conflist.find(tmp_path, "cni-py")
    write(tmp_path, "10.conflist", network("podman"))
    with pytest.raises(
        conflist.NoSuchNetwork, match=rf"there are: podman; `cni-py install --conf-dir {tmp_path} --network`"
    ):
        conflist.find(tmp_path, "cni-py")
    write(tmp_path, "20.conflist", network("cni-py"))
    with pytest.raises(conflist.NoSuchNetwork, match=r"there are: podman, cni-py$"):
        conflist.find(tmp_path, "cnipy")


def test_drop_ins_are_appended_in_lexical_order(tmp_path: Path) -> None:
    write(tmp_path, "10.conflist", network())
    write(tmp_path / "one", "20.conf", {"type": "loopback"})
    write(tmp_path / "one", "10.conf", {"type": "portmap"})
    write(tmp_path / "one", "10.json", {"type": "tuning"})
    found = conflist.read(tmp_path / "10.conflist")
    assert found.types == ["bridge", "portmap", "loopback"]
    assert conflist.parse(found.text, "the cache").types == found.types
    write(tmp_path, "10.conflist", network(loadOnlyInlinedPlugins=True))
    assert conflist.read(tmp_path / "10.conflist").types == ["bridge"]


@pytest.mark.parametrize(
    ("text", "says"), [("{", "10.conf"), ("[]", "10.conf: the whole must be a JSON object"), ("{}", "has no")]
)
def test_a_broken_drop_in_is_an_error_with_its_file(text: str, says: str, tmp_path: Path) -> None:
    write(tmp_path, "10.conflist", network())
    write(tmp_path / "one", "10.conf", text)
    with pytest.raises(CniError, match=says) as failure:
        conflist.read(tmp_path / "10.conflist")
    assert str(tmp_path / "one" / "10.conf") in str(failure.value)


def test_a_list_without_plugins_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "10.conflist", network(plugins=[]))
    with pytest.raises(CniError, match="no plugins"):
        conflist.read(tmp_path / "10.conflist")


def test_a_plugin_receives_what_it_declares() -> None:
    found = parsed(network())
    asked = obj({"portMappings": [{"hostPort": 1, "containerPort": 2}], "ips": ["192.0.2.2"], "mac": "x"})
    text = conflist.request(found, found.plugins[0], asked, obj({"ips": []}), {"extra": 1})
    assert json.loads(text) == {
        **PLUGIN,
        "name": "one",
        "cniVersion": "1.0.0",
        "runtimeConfig": {"portMappings": [{"hostPort": 1, "containerPort": 2}]},
        "prevResult": {"ips": []},
        "extra": 1,
    }
    assert json.loads(conflist.request(found, found.plugins[0], Object())) == {
        **PLUGIN,
        "name": "one",
        "cniVersion": "1.0.0",
    }


def test_a_network_declares_what_any_plugin_does() -> None:
    found = parsed(network())
    assert (found.declares("portMappings"), found.declares("ips"), found.declares("mac")) == (True, False, False)


def test_a_file_is_told_from_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "10.conflist", network())
    assert [conflist.is_path(text) for text in ("./x", "10.conflist", "20.conflist", "one")] == [
        True,
        True,
        False,
        False,
    ]
