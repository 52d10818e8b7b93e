"""What surrounds the machine: the command line of the Go daemon, leases on disk, options of a configuration, the units."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from cni_py.attachment.naming import Attachment
from cni_py.dhcp import daemon
from cni_py.dhcp.leases import client_of
from cni_py.dhcp.machine import NEVER, Identity, Lease
from cni_py.dhcp.store import Kept, Store
from cni_py.errors import InvalidNetworkConfig
from cni_py.ipam.dhcp_options import provided, requested
from cni_py.protocol import gojson
from tests.lacking import unavailable

ROOT = Path(__file__).parents[3]
LEASE = Lease(b"\xc0\0\2\x32", b"\xc0\0\2\1", bytes(6), {1: b"\xff\xff\xff\0", 12: b""}, 1.5, 2.5, 3.5, 4.5)
IDENTITY = Identity(bytes(6), b"\0c1", {12: b"web"}, (3, 1), broadcast=True)
KEPT = Kept(Attachment("lan", "c1", "eth0"), "/run/netns/c1", "4:7", 9, 2, IDENTITY, LEASE)


@pytest.mark.parametrize(
    ("text", "seconds"), [("10s", 10), ("1m30s", 90), ("500ms", 0.5), ("1h", 3600), ("1.5s", 1.5), (".5m", 30)]
)
def test_times_are_written_as_in_go(text: str, seconds: float) -> None:
    assert daemon.duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "10", "s", "-1s", "1s x", "1d"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no duration"):
        daemon.duration(text)


def test_the_arguments_are_those_of_the_go_daemon() -> None:
    words = (
        "-pidfile /run/p -hostprefix=/host --socketpath /run/s -broadcast -timeout=5s -resendmax 1m -resendtimeout 2m"
    )
    found = daemon.parser().parse_args(words.split())
    assert (found.pidfile, found.hostprefix, found.socketpath, found.broadcast) == ("/run/p", "/host", "/run/s", "true")
    assert (found.timeout, found.resendmax, found.resendtimeout) == (5, 60, 120)
    assert daemon.parser().parse_args(["-broadcast=false"]).broadcast == "false"
    assert (daemon.parser().parse_args([]).timeout, daemon.parser().parse_args([]).resendtimeout) == (10, 208)


def test_leases_are_kept_and_what_is_damaged_is_not(tmp_path: Path) -> None:
    store = Store(tmp_path / "leases")
    for kept in (KEPT, replace(KEPT, key=Attachment("lan", "c2", "\udce4"), lease=replace(LEASE, expiry=NEVER))):
        store.save(kept)
    found = {kept.key.container_id: kept for kept, is_current in store.all() if is_current}
    assert found["c1"].identity == IDENTITY
    assert found["c1"].lease == LEASE
    assert found["c2"].lease.expiry == NEVER
    (path,) = [path for path in store.folder.glob("*.json") if '"c1"' in path.read_text()]
    fields = json.loads(path.read_text())
    for damage in (
        {"schema": 2},
        {"address": "x"},
        {"identity": 5},
        {"options": {"a": "b"}},
        {"begun": None},
        {"boot": ""},
    ):
        path.write_text(json.dumps({**fields, **damage}))
        left = [is_current for kept, is_current in store.all() if kept.key.container_id == "c1"]
        assert left == ([False] if "boot" in damage else [])
        assert path.exists() == bool(left)
    with pytest.raises(BlockingIOError):
        Store(tmp_path / "leases")


def test_the_client_identifier_is_the_go_daemons() -> None:
    assert client_of(Attachment("lan", "c1", "eth0")) == b"\0c1/lan/eth0"
    assert client_of(Attachment("lan", "c" * 300, "eth0")) == b"\0" + b"c" * 254


def ipam(**keys: object) -> gojson.Object:
    found = gojson.decode(json.dumps(keys).encode())
    assert isinstance(found, gojson.Object)
    return found


@pytest.mark.parametrize(
    ("entries", "args", "expected"),
    [
        ([{"option": "host-name", "value": "web"}], "", {12: b"web"}),
        ([{"option": "12", "value": "web", "fromArg": "HOST"}], "A=1;HOST=b=c", {12: b"b=c"}),
        ([{"option": "host-name", "fromArg": "HOST"}], "HOST=;X", {}),
        (
            [{"option": "60", "value": "ä"}, {"option": "dhcp-client-identifier", "value": "x"}],
            "",
            {60: "ä".encode(), 61: b"x"},
        ),
    ],
)
def test_options_that_are_provided(entries: list[dict[str, str]], args: str, expected: Mapping[int, bytes]) -> None:
    assert provided(ipam(provide=entries), args) == expected


@pytest.mark.parametrize(
    ("entry", "args"),
    [
        ({"option": "53", "value": "x"}, ""),
        ({"option": "256", "value": "x"}, ""),
        ({"option": "-1", "value": "x"}, ""),
        ({"option": "٣", "value": "x"}, ""),
        ({"option": "00000012", "value": "x"}, ""),
        ({"option": "", "value": "x"}, ""),
        ({"option": "12", "value": "x" * 256}, ""),
        ({"option": "12", "fromArg": "A"}, "A=" + "x" * 256),
    ],
)
def test_options_that_cannot_be_provided(entry: dict[str, str], args: str) -> None:
    with pytest.raises(InvalidNetworkConfig):
        provided(ipam(provide=[entry]), args)


def test_options_that_are_requested() -> None:
    assert requested(ipam()) == [3, 1]
    assert requested(ipam(request=[{"option": "121"}, {"option": "routers"}])) == [121, 3, 1]
    assert requested(ipam(request=[{"skipDefault": True}, {"option": "33"}])) == [33]


def test_systemd_finds_no_fault_in_the_units(tmp_path: Path) -> None:
    names = ("cni-dhcp.service", "cni-dhcp.socket")
    if shutil.which("systemd-analyze") is None:
        unavailable("systemd-analyze is missing")
    for name in names:
        (tmp_path / name).write_text((ROOT / "conf" / name).read_text().replace("/opt/cni/bin/dhcp", "/bin/true"))
    words = ["systemd-analyze", "verify", "--man=no", *(str(tmp_path / name) for name in names)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert not [line for line in done.stderr.splitlines() if "cni-dhcp" in line]
