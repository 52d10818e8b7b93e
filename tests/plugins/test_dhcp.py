"""dhcp and its daemon with real servers, dnsmasq and busybox's udhcpd, and with the Go plugins in every part."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lab import Lab

from tests.clients import fetch_debs
from tests.lacking import missing
from tests.plugins.dhcp_site import HOST_NAME, Site, until

ADDRESS = "192.0.2.50"
OTHER_MAC = "02:00:00:00:00:99"
DEFAULT: dict[str, Any] = {"dst": "0.0.0.0/0", "gw": "192.0.2.1"}
STATIC: dict[str, Any] = {"dst": "203.0.113.0/24", "gw": "192.0.2.8"}
CLASSLESS: list[dict[str, Any]] = [
    {"dst": "198.51.100.128/25", "gw": "192.0.2.9"},
    {"dst": "203.0.113.7/32", "gw": "0.0.0.0", "scope": 253},
]
OPTIONS = (
    "--dhcp-option=33,203.0.113.0,192.0.2.8",
    "--dhcp-option=121,198.51.100.128/25,192.0.2.9,203.0.113.7/32,0.0.0.0",
)


@pytest.fixture(scope="session")
def debs() -> Path:
    try:
        return fetch_debs.fetch()
    except (fetch_debs.Unavailable, OSError) as error:
        missing(f"Debian's dnsmasq cannot be had: {error}")


@pytest.fixture(scope="session")
def go_bin_dir() -> Path:
    given = os.environ.get("CNI_GO_BIN_DIR")
    if not given:
        missing("CNI_GO_BIN_DIR does not say where the Go plugins are")
    return Path(given).resolve()


@pytest.fixture
def site(shared_lab: Lab, debs: Path, our_bin_dir: Path, tmp_path: Path) -> Iterator[Site]:
    """All of it ours."""
    found = Site(shared_lab, debs, tmp_path, our_bin_dir, our_bin_dir, our_bin_dir)
    yield found
    found.close()


def routes_of(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Without what Debian 12's Go plugins do not know."""
    return [{key: route[key] for key in ("dst", "gw") if key in route} for route in result["routes"]]


@pytest.mark.parametrize(
    ("caller", "ipam", "daemon"),
    [
        ("ours", "ours", "ours"),
        ("ours", "ours", "go"),
        ("ours", "go", "ours"),
        ("ours", "go", "go"),
        ("go", "go", "ours"),
    ],
)
def test_plugin_and_daemon_may_be_anybodys(
    shared_lab: Lab,
    debs: Path,
    our_bin_dir: Path,
    go_bin_dir: Path,
    tmp_path: Path,
    caller: str,
    ipam: str,
    daemon: str,
) -> None:
    """The results are the same with all of them, those of the Go plugins with each other included."""
    where = {"ours": our_bin_dir, "go": go_bin_dir}
    site = Site(shared_lab, debs, tmp_path, where[caller], where[ipam], where[daemon])
    try:
        site.dnsmasq(*OPTIONS)
        site.start()
        container = site.container()
        for asked, routes in (([], [DEFAULT]), ([33], [STATIC, DEFAULT]), ([121, 33], CLASSLESS)):
            conf = site.conf(request=[{"option": str(option)} for option in asked])
            result = site.well("ADD", container, conf)
            assert result["ips"] == [{"address": f"{ADDRESS}/24", "gateway": "192.0.2.1", "interface": 2}]
            assert routes_of(result) == [{key: route[key] for key in ("dst", "gw")} for route in routes]
            assert f"{ADDRESS}/24" in site.do("ip address show eth0", container)
            assert site.leased() == [f"{ADDRESS} {HOST_NAME}"]
            if caller == "ours" or routes is not CLASSLESS:  # Go's looks for a route through 0.0.0.0
                site.well("CHECK", container, {**conf, "prevResult": result})
            site.well("DEL", container, {**conf, "prevResult": result})
        if daemon == caller == "ours":  # a Go bridge deletes the interface before the daemon hears of it
            until(lambda: not site.leased())
    finally:
        site.close()


def test_a_lease_outlives_the_daemon(site: Site) -> None:
    """Killed or ended: the next one goes on with the lease, answers CHECK from it, and gives it back.

    Also when tuning, behind the plugin that has asked for the lease, has given the interface another MAC address.
    """
    site.dnsmasq()
    site.start()
    container, conf = site.container(), site.conf()
    tuning = {**conf, "type": "tuning", "mac": OTHER_MAC, "prevResult": site.well("ADD", container, conf)}
    result = site.well("ADD", container, tuning, plugin="tuning")
    checked = {**conf, "prevResult": result}
    for how in (signal.SIGKILL, signal.SIGTERM):
        (before,) = site.kept()
        site.end(how)
        assert site.run("CHECK", container, checked).returncode == 1
        site.start()
        assert site.kept() == [before]
        site.well("CHECK", container, checked)
        assert site.leased() == [f"{ADDRESS} {HOST_NAME}"]
    site.well("DEL", container, conf)
    until(lambda: not site.leased())
    assert not site.kept()
    site.well("DEL", container, conf)
    assert site.run("CHECK", container, checked, plugin="dhcp").returncode == 1


def test_a_lease_goes_with_its_namespace(site: Site) -> None:
    """No DEL ever comes. With macvlan, and the configuration that is the example."""
    site.dnsmasq()
    site.start()
    master, port = site.network, f"{site.network}p"
    site.do(f"ip link add {port} type veth peer name {master}; ip link set {port} master {site.bridge} up")
    site.do(f"ip link set {master} up")
    example = json.loads((Path(__file__).parents[2] / "conf/dhcp.conflist").read_text())
    (conf,) = example["plugins"]
    conf |= {"cniVersion": example["cniVersion"], "name": site.network, "master": master}
    conf["ipam"]["daemonSocketPath"] = site.socket
    container = site.container()
    site.well("ADD", container, conf, plugin="macvlan")
    assert site.leased() == [f"{ADDRESS} {HOST_NAME}"]
    site.lab.remove(site.containers.pop())
    until(lambda: not site.leased())
    until(lambda: not site.kept())


def test_a_del_succeeds_while_no_daemon_runs(site: Site) -> None:
    """The daemon that comes later knows that nobody has the address any more."""
    site.dnsmasq()
    site.start()
    container, conf = site.container(), site.conf()
    site.well("ADD", container, conf)
    site.end(signal.SIGKILL)
    done = site.run("DEL", container, conf)
    assert done.returncode == 0
    assert done.stderr.count("no lease is released") == 1
    assert site.run("STATUS", container, {**conf, "cniVersion": "1.1.0"}, plugin="dhcp").returncode == 1
    assert site.kept()
    site.start()
    assert not site.kept()
    site.well("STATUS", container, {**conf, "cniVersion": "1.1.0"}, plugin="dhcp")


def test_gc_gives_back_what_is_not_listed(site: Site) -> None:
    site.dnsmasq()
    site.start()
    container = site.container()
    conf = {**site.conf(), "cniVersion": "1.1.0"}
    site.well("ADD", container, conf)
    listed = [{"containerID": container, "ifname": "eth0"}]
    for valid, left in ((listed, 1), ([], 0)):
        site.well("GC", container, {**conf, "cni.dev/valid-attachments": valid}, plugin="dhcp")
        until(lambda left=left: len(site.leased()) == left)  # type: ignore[misc]  # of this round


def test_a_lease_is_renewed_and_ends_with_its_server(site: Site) -> None:
    """By udhcpd, whose leases may be short. When the lease has expired the interface is down, as with the Go daemon."""
    site.udhcpd(lease=4)
    site.start()
    container, conf = site.container(), site.conf()
    site.well("ADD", container, conf)
    (first,) = site.kept()
    site.do(f"ip link set eth0 address {OTHER_MAC}", container)
    until(lambda: site.kept()[0]["begun"] > first["begun"])
    assert site.kept()[0]["address"] == ADDRESS
    assert site.server is not None
    site.server.kill()
    until(lambda: "state DOWN" in site.do("ip link show eth0", container))
    until(lambda: not site.kept())
    done = site.run("CHECK", container, conf, plugin="dhcp")
    assert "the lease has expired" in done.stdout
    site.well("DEL", container, conf)


def test_the_daemon_is_given_its_socket_by_systemd(site: Site, native_bin_dir: Path) -> None:
    """LISTEN_FDS; and the compiled launcher hands the daemon's words on."""
    site.daemons = native_bin_dir
    site.dnsmasq()
    script = (
        "import os, socket, sys; path, program = sys.argv[1:]; os.makedirs(os.path.dirname(path), exist_ok=True); "
        "sock = socket.socket(socket.AF_UNIX); sock.bind(path); sock.listen(); os.dup2(sock.fileno(), 3); "
        "os.set_inheritable(3, True); "
        "os.environ |= {'LISTEN_PID': str(os.getpid()), 'LISTEN_FDS': '1'}; os.execv(program, [program, 'daemon'])"
    )
    words = ["python3", "-c", script, site.socket, str(native_bin_dir / "dhcp")]
    site.daemon = site.lab["host"].popen(words)
    container, conf = site.container(), site.conf()
    until(lambda: site.run("STATUS", container, {**conf, "cniVersion": "1.1.0"}, plugin="dhcp").returncode == 0)
    site.well("ADD", container, conf)
    assert site.kept()
    site.well("DEL", container, conf)


def test_strangers_are_sent_away_and_nonsense_hurts_nobody(site: Site) -> None:
    site.dnsmasq()
    site.start()
    site.do(f"chmod 755 /run/cni; chmod 777 {site.socket}")
    answers = [
        site.lab["host"].python(said, site.socket, uid, text)
        for uid, text in (
            (65534, b"CONNECT /_goRPC_ HTTP/1.0\n\n"),
            (0, b"CONNECT /_goRPC_ HTTP/1.0\n\n\xf8" + bytes(64)),
            (0, b"CONNECT /_goRPC_ HTTP/1.0\n\n\x03\x7f\x01\x02"),
            (0, b"GET / HTTP/1.0\n\n"),
        )
    ]
    welcome = b"HTTP/1.0 200 Connected to Go RPC\n\n"
    assert answers == [b"", welcome, welcome, b""]
    container, conf = site.container(), site.conf()
    site.well("ADD", container, conf)
    site.well("DEL", container, conf)


def said(path: str, uid: int, text: bytes) -> bytes:
    """What the daemon answers a user."""
    os.setuid(uid)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        with contextlib.suppress(ConnectionError):
            sock.sendall(text)
            sock.shutdown(socket.SHUT_WR)
        found = b""
        with contextlib.suppress(ConnectionResetError):  # it has hung up without reading all
            while data := sock.recv(4096):
                found += data
        return found
