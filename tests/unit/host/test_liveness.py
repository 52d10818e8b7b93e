"""The decision table of cni_py/host/liveness.py: each line once, and that one more or one fewer thing seen changes it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cni_py.host.census import Census, Interface, Space
from cni_py.host.containers import Answers
from cni_py.host.liveness import OTHER, Claim, View, judge, judge_all, owned
from cni_py.host.model import Finding

SANDBOX = "0123456789abcdef" * 4
UUID = "01234567-89ab-cdef-0123-456789abcdef"
CRI_PATH = f"/var/run/netns/cni-{UUID}"
MAC = "02:00:00:00:00:07"
OWN = Interface("eth0", 2, MAC, "veth", "", frozenset({"192.0.2.7"}))
VETH = Interface("veth12", 9, "02:00:00:00:00:08", "veth", "", peer=2, abroad=True)

HOST = Space("net:[1]", 1, pids=[1])
MOUNTED = Space("net:[7]", 77, mounts=["/proc/12/root/run/netns/web"])
RECORDED = Claim("web", "eth0", "00ff", "/run/netns/web", cookie=77, ours=True, here=True, number=5)
CACHED = Claim(SANDBOX, "eth0", "00ff", CRI_PATH, macs=frozenset({MAC}))
UNSEEN = Space("id 5", number=5, interfaces=(OWN,))
UNNUMBERED = replace(RECORDED, number=-1)
LOST = Claim("web", "eth0", "00ff", addresses=frozenset({"192.0.2.7"}))

QUIET = Finding("note", "not-seen", "podman", "podman does not answer")
ASKED = Answers(answered=frozenset({"containerd"}))
SILENT = replace(ASKED, gaps=(QUIET,))
KNOWN = replace(ASKED, known=frozenset({SANDBOX, "web"}))


def view(*spaces: Space, answers: Answers = ASKED, hidden: str = "", working: str = "", host: Space = HOST) -> View:
    return View(Census((host, *spaces), hidden, frozenset({working})), answers)


STANDING = replace(HOST, interfaces=(VETH,))
OWNED = replace(RECORDED, container_id=SANDBOX, netns=CRI_PATH)
LINKED = replace(RECORDED, host_links=("veth12",))
INSIDE = replace(MOUNTED, cookie=78, interfaces=(OWN,))
SHARED = View(Census((HOST,), shared="a mount"), ASKED)

CASES = {
    # a call is at work
    "locked": (replace(RECORDED, busy=True), view(), "alive"),
    "plugin runs": (RECORDED, view(working="web"), "alive"),
    # its namespace exists
    "process": (OWNED, view(replace(MOUNTED, pids=[9])), "alive"),
    "descriptor": (OWNED, view(replace(MOUNTED, descriptors=["/proc/9/fd/3"])), "alive"),
    "descriptor alone": (RECORDED, view(replace(MOUNTED, mounts=[], descriptors=["/proc/9/fd/3"])), "alive"),
    "mount": (RECORDED, view(MOUNTED), "alive"),
    "mount, owner denies": (OWNED, view(MOUNTED), "dead"),
    "mount, owner knows": (OWNED, view(MOUNTED, answers=KNOWN), "alive"),
    "mount, owner absent": (OWNED, view(MOUNTED, answers=Answers()), "alive"),
    "mount, another silent": (OWNED, view(MOUNTED, answers=SILENT), "alive"),
    "mount, path of nobody": (replace(OWNED, netns="/run/netns/x"), view(MOUNTED), "alive"),
    "nerdctl": (replace(OWNED, container_id=f"default-{SANDBOX}", netns="/proc/9/ns/net"), view(MOUNTED), "dead"),
    "by MAC": (CACHED, view(INSIDE, answers=Answers()), "alive"),
    "by address": (LOST, view(INSIDE), "alive"),
    "by alias": (
        replace(LOST, addresses=frozenset()),
        view(replace(INSIDE, interfaces=(replace(OWN, alias="00ff x"),))),
        "alive",
    ),
    "number of old kernel": (replace(RECORDED, cookie=0, key="net:[7]"), view(MOUNTED), "alive"),
    "address of another": (LOST, replace(view(INSIDE), owned=frozenset({(INSIDE.key, "eth0")})), "unknown"),
    # it does not
    "gone": (RECORDED, view(), "dead"),
    "path leads elsewhere": (replace(RECORDED, leads_to="net:[8]"), view(replace(MOUNTED, cookie=78)), "dead"),
    "gone, runtime knows": (RECORDED, view(answers=KNOWN), "dead"),
    "gone, old kernel": (replace(LINKED, cookie=0, key="net:[9]"), view(MOUNTED), "dead"),
    "gone, not all seen": (RECORDED, view(hidden="not root"), "dead"),
    "its number is another's": (RECORDED, view(replace(MOUNTED, cookie=78, number=5)), "dead"),
    "its number is of one that is not seen": (RECORDED, view(UNSEEN), "unknown"),
    "found by its number": (replace(RECORDED, macs=frozenset({MAC})), view(UNSEEN), "alive"),
    "found by number, owner denies": (replace(OWNED, macs=frozenset({MAC})), view(UNSEEN), "alive"),
    "a socket may keep it": (UNNUMBERED, view(), "unknown"),
    "a socket may keep it, old kernel": (replace(UNNUMBERED, cookie=0, key="net:[9]"), view(), "unknown"),
    "a socket keeps it": (replace(UNNUMBERED, macs=frozenset({MAC})), view(UNSEEN), "alive"),
    "gone without number, not all seen": (UNNUMBERED, view(hidden="not root"), "unknown"),
    "gone with its veth": (LINKED, view(hidden="not root"), "dead"),
    "veth stands": (LINKED, view(host=STANDING), "unknown"),
    "veth stands by alias": (
        RECORDED,
        view(host=replace(HOST, interfaces=(replace(VETH, alias="00ff a/b/c"),))),
        "unknown",
    ),
    "its pair is at home": (LINKED, view(host=replace(HOST, interfaces=(replace(VETH, abroad=False),))), "dead"),
    # no cookie is known
    "path gone": (CACHED, view(answers=Answers()), "dead"),
    "path gone, runtime knows": (CACHED, view(answers=KNOWN), "unknown"),
    "path gone, a runtime is silent": (CACHED, view(answers=SILENT), "unknown"),
    "path gone, not all seen": (CACHED, view(hidden="not root"), "unknown"),
    "path gone, interface not known": (replace(CACHED, macs=frozenset()), view(answers=Answers()), "unknown"),
    "path gone, without an end on the host": (replace(CACHED, whole=True), view(answers=Answers()), "unknown"),
    "without an end on the host, owner denies": (replace(CACHED, whole=True), view(), "dead"),
    "perhaps another host's": (CACHED, SHARED, "unknown"),
    "this host's": (replace(CACHED, here=True), SHARED, "dead"),
    "another machine's": (replace(CACHED, stranger="stamped"), view(), "unknown"),
    "path unreadable": (replace(CACHED, leads_to=None), view(), "unknown"),
    "path of a file": (replace(CACHED, leads_to=OTHER), view(answers=Answers()), "unknown"),
    "path of a file, owner denies": (replace(CACHED, leads_to=OTHER), view(), "dead"),
    "path of another": (replace(CACHED, leads_to="net:[8]"), view(answers=Answers()), "unknown"),
    "path of another, owner denies": (replace(CACHED, leads_to="net:[8]"), view(), "dead"),
    # only an address is known
    "address": (LOST, view(), "unknown"),
    "address, ours": (replace(LOST, ours=True), view(), "dead"),
    "address, owner denies": (replace(LOST, container_id=SANDBOX), view(), "dead"),
    "address, runtime knows": (replace(LOST, container_id=SANDBOX, ours=True), view(answers=KNOWN), "unknown"),
    "nothing": (replace(LOST, addresses=frozenset(), ours=True), view(), "unknown"),
}


@pytest.mark.parametrize("name", CASES)
def test_table(name: str) -> None:
    claim, seen, expected = CASES[name]
    live, why = judge(claim, seen)
    assert (live, bool(why)) == (expected, True), why


def test_an_interface_is_owned_by_cookie_or_mac() -> None:
    """The next container has the address of one whose DEL was lost: the lost one is dead, the next is not."""
    nxt = Claim("next", "eth0", "11ff", macs=frozenset({MAC}), addresses=frozenset({"192.0.2.7"}))
    late = Claim(SANDBOX, "eth0", "00ff", CRI_PATH, macs=frozenset({"02:00:00:00:00:99"}), addresses=nxt.addresses)
    for first in (nxt, replace(nxt, macs=frozenset(), cookie=INSIDE.cookie)):
        seen = view(INSIDE)
        seen = replace(seen, owned=owned((first, late), seen.census))
        assert [judge(claim, seen)[0] for claim in (first, late)] == ["alive", "dead"]


def test_lo_goes_with_the_other_interface_of_its_container() -> None:
    lo = replace(
        CACHED, ifname="lo", hex="11ff", macs=frozenset({"00:00:00:00:00:00"}), addresses=frozenset({"127.0.0.1"})
    )
    theirs = Interface("lo", 1, "00:00:00:00:00:00", "", "", frozenset({"127.0.0.1", "::1"}))
    other = replace(MOUNTED, cookie=79, interfaces=(theirs,))
    silent = view(answers=Answers())
    assert judge_all((lo,), silent)["11ff"][0] == "unknown"
    assert judge_all((lo, CACHED), silent)["11ff"][0] == "dead"
    assert judge_all((lo, CACHED), view(other, answers=Answers()))["11ff"][0] == "dead"
    assert judge_all((replace(lo, netns="/run/netns/x"), CACHED), silent)["11ff"][0] == "unknown"
    assert judge_all((lo, CACHED), view(INSIDE, answers=Answers()))["11ff"][0] == "unknown"
