"""hostclients.AllowLoopbackClients: 127.0.0.0/8 passes by an interface only behind two guards, one that a flush leaves."""

import contextlib
import io
import json
import subprocess

import pytest

from cni_py.attachment.context import Kernel
from cni_py.attachment.naming import Attachment
from cni_py.commands import collection
from cni_py.kernel import tc
from cni_py.nftables import ruleset
from cni_py.ports import host_clients
from cni_py.restore import restoration


def run(command: str) -> str:
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def prepare() -> None:
    """A /run of our own, for the locks."""
    run("mount -t tmpfs tmpfs /run && mkdir /run/netns")


@pytest.mark.netns
def test_loopback_is_opened_to_an_interface_only_behind_its_guard_and_never_to_lo() -> None:
    prepare()
    run("ip link set lo up; ip link add br7 type bridge; ip addr add 198.51.100.1/24 dev br7; ip link set br7 up")
    run("ip route add 203.0.113.0/24 via 198.51.100.9")
    kernel = Kernel(Attachment("n", "c", "eth0"), "")
    for address, changed in (
        ("198.51.100.1", False),
        ("203.0.113.5", False),
        ("192.0.2.5", False),
        ("198.51.100.2", True),
    ):
        op = host_clients.AllowLoopbackClients(address=address)
        assert op.apply(kernel) is changed, address
        assert op.check(kernel) is None
    link = kernel.host.link("br7")
    assert link is not None
    index = link.index
    noted = {"elem": {"val": "br7", "comment": f"{index} filtered by tc, too"}}
    listed = json.loads(run("nft -j list set inet cni_py local_links"))["nftables"]
    assert [entry["set"]["elem"] for entry in listed if "set" in entry] == [[noted]]
    assert tc.guards_loopback(kernel.host, index)
    assert run("sysctl -n net.ipv4.conf.br7.route_localnet net.ipv4.conf.lo.route_localnet").split() == ["1", "0"]
    assert op.apply(kernel) is False
    run("nft flush set inet cni_py local_links")
    assert op.check(kernel) is not None
    assert op.apply(kernel) is False
    assert op.check(kernel) is None
    run("tc qdisc del dev br7 clsact")
    assert "tc filter is missing" in (op.check(kernel) or "")
    restoration.RestoreGuard(address="198.51.100.2", opens=True).apply(restoration.Draft(kernel))
    assert op.check(kernel) is None


@pytest.mark.netns
def test_loopback_open_by_the_setting_of_all_is_guarded_and_not_set_again() -> None:
    prepare()
    run("ip link set lo up; ip link add br7 type bridge; ip addr add 198.51.100.1/24 dev br7; ip link set br7 up")
    run("sysctl -qw net.ipv4.conf.all.route_localnet=1")
    run("mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys")
    kernel = Kernel(Attachment("n", "c", "eth0"), "")
    op = host_clients.AllowLoopbackClients(address="198.51.100.2")
    assert "open" in (op.check(kernel) or "")  # all opens every interface
    assert op.apply(kernel) is False
    assert op.check(kernel) is None
    assert run("sysctl -n net.ipv4.conf.br7.route_localnet").strip() == "0"
    link = kernel.host.link("br7")
    assert link is not None
    assert tc.guards_loopback(kernel.host, link.index)


@pytest.mark.netns
def test_guard_made_by_an_earlier_version_gets_its_filter_and_a_new_bridge_of_the_name_too_until_gc() -> None:
    prepare()
    kernel = Kernel(Attachment("n", "c", "eth0"), "")
    op = host_clients.AllowLoopbackClients(address="198.51.100.2")
    ruleset.ensure_table(kernel.nft)
    run("nft add element inet cni_py local_links { br7 }")
    for _ in range(2):
        run("ip link add br7 type bridge; ip addr add 198.51.100.1/24 dev br7; ip link set br7 up")
        run("sysctl -qw net.ipv4.conf.br7.route_localnet=1")
        assert "tc filter is missing" in (op.check(kernel) or "")
        op.apply(kernel)
        assert op.check(kernel) is None
        run("ip link del br7")
    run("ip link add br8 type bridge; ip addr add 198.51.100.1/24 dev br8; ip link set br8 up")
    op.apply(kernel)
    seen = [item.why for item in collection.unused(kernel, set(), dry_run=True)]
    assert (
        seen == [item.why for item in collection.unused(kernel, set(), dry_run=False)] == ["there is no interface br7"]
    )
    assert "br8" in run("nft list set inet cni_py local_links")
    assert not list(collection.unused(kernel, set(), dry_run=False))


@pytest.mark.netns
def test_a_filter_of_somebody_else_in_the_place_of_the_guard_stays_and_is_said() -> None:
    prepare()
    run("ip link add br7 type bridge; ip addr add 198.51.100.1/24 dev br7; ip link set br7 up")
    run("tc qdisc add dev br7 clsact; tc filter add dev br7 ingress pref 1 protocol all u32 match u32 0 0 classid 1:1")
    kernel = Kernel(Attachment("n", "c", "eth0"), "")
    op = host_clients.AllowLoopbackClients(address="198.51.100.2")
    with contextlib.redirect_stderr(io.StringIO()) as said:
        assert op.apply(kernel) is True
    assert op.check(kernel) is None
    assert "not filtered by tc" in run("nft list set inet cni_py local_links")
    assert "u32" in run("tc filter show dev br7 ingress")
    assert "br7 by nftables alone" in said.getvalue()
