"""cni_py.interface.shaping on real links: what undo() takes, and what it leaves to others."""

from __future__ import annotations

import errno
import subprocess

import pytest

from cni_py.attachment.context import Kernel
from cni_py.attachment.naming import Attachment
from cni_py.errors import CniError
from cni_py.interface.common import need
from cni_py.interface.shaping import AddIfb, LimitRate, RedirectToIfb, delete_ifb, refused
from cni_py.kernel import tc

KEY = Attachment("net1", "c1", "eth0")
MAC = bytes.fromhex("020000000007")
REDIRECT = RedirectToIfb(name="v0", ifb="ours")


def host() -> Kernel:
    """A host with a veth pair and the ifb device of an attachment."""
    subprocess.run("ip link add v0 type veth peer name v1; ip link set v0 up", shell=True, check=True)
    kernel = Kernel(KEY, "")
    AddIfb(name="ours", mac=MAC, mtu=1400).apply(kernel)
    return kernel


def index(kernel: Kernel, name: str = "v0") -> int:
    return need(kernel.host, name).index


@pytest.mark.netns
def test_a_redirect_shares_the_ingress_with_the_guard_of_loopback_and_leaves_it() -> None:
    kernel = host()
    assert tc.filter_loopback(kernel.host, need(kernel.host, "v0")) == ""
    REDIRECT.apply(kernel)
    assert REDIRECT.check(kernel) is None
    assert tc.guards_loopback(kernel.host, index(kernel))
    REDIRECT.undo(kernel)
    assert tc.guards_loopback(kernel.host, index(kernel))
    assert REDIRECT.check(kernel) == "what comes in by v0 is not led to ours"


@pytest.mark.netns
def test_somebody_elses_redirect_is_refused_and_left_alone() -> None:
    kernel = host()
    subprocess.run(
        "ip link add theirs type ifb; tc qdisc add dev v0 handle ffff: ingress; tc filter add dev v0 parent ffff: prio 1 "
        "protocol all u32 match u32 0 0 action mirred egress redirect dev theirs",
        shell=True,
        check=True,
    )
    with pytest.raises(CniError, match="cannot lead the traffic of v0 to ours"):
        REDIRECT.apply(kernel)
    REDIRECT.undo(kernel)
    assert tc.redirects(kernel.host, index(kernel)) == [index(kernel, "theirs")]


@pytest.mark.netns
def test_a_redirect_is_undone_when_its_ifb_is_gone_already() -> None:
    kernel = host()
    REDIRECT.apply(kernel)
    kernel.host.delete_link("ours")
    REDIRECT.undo(kernel)
    assert not tc.has_ingress(kernel.host, index(kernel))


@pytest.mark.netns
def test_an_ifb_is_deleted_by_its_alias_and_without_one_only_if_said() -> None:
    kernel = host()
    kernel.host.set_link("ours", alias="0123456789abcdef net1/c2/eth0")
    delete_ifb(kernel, "ours", nameless=True)
    kernel.host.set_link("ours", alias="")
    delete_ifb(kernel, "ours", nameless=False)
    assert kernel.host.link("ours") is not None
    delete_ifb(kernel, "ours", nameless=True)
    delete_ifb(kernel, "v0", nameless=True)  # no ifb
    assert (kernel.host.link("ours"), kernel.host.link("v0") is None) == (None, False)


@pytest.mark.netns
def test_check_tells_other_limits_from_none() -> None:
    kernel = host()
    wanted = LimitRate(name="v0", rate=125_000, burst=100_000)
    assert wanted.check(kernel) == "Failed to find qdisc tbf on v0"
    LimitRate(name="v0", rate=125_000, burst=50_000).apply(kernel)
    assert wanted.check(kernel) == "qdisc tbf on v0 does not have the limits of the configuration"


def test_a_refusal_names_what_the_kernel_lacks() -> None:
    lacking = refused("limit v0", OSError(errno.ENOENT, "No such file or directory"), errno.ENOENT, "tbf")
    assert (lacking.msg, lacking.details) == ("this kernel cannot limit v0", "it lacks tbf")
    other = refused("limit v0", OSError(errno.EPERM, "Operation not permitted"), errno.ENOENT, "tbf")
    assert (other.msg, other.details) == ("cannot limit v0", "Operation not permitted")
