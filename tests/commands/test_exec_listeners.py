"""`cni-py-exec` and ports that programs of the host listen on: refused before anything is done, as docker and podman do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lab import Lab

from tests.commands.hand import NETWORK, Hand, links
from tests.plugins.test_host_listeners import holding

CONF = "/etc/cni/net.d/50-lab.conflist"
SAID = "cni-py-exec: port 8080/tcp on 0.0.0.0 is in use by python"
ONLY4 = [[{"subnet": "192.0.2.0/24"}]]


@pytest.fixture
def hand(lab: Lab, our_bin_dir: Path) -> Hand:
    hand = Hand(lab, "ours", our_bin_dir, Path(CONF), {"cniVersion": "1.0.0", **NETWORK})
    hand.write(CONF, json.dumps(hand.network))
    return hand


def change(hand: Hand, place: int, **keys: object) -> None:
    plugins = [dict(plugin) for plugin in NETWORK["plugins"]]
    plugins[place].update(keys)
    hand.write(CONF, json.dumps({**hand.network, "plugins": plugins}))


pytestmark = pytest.mark.ours_alone


def test_an_add_is_refused_before_anything_is_done(hand: Hand) -> None:
    with holding(hand.lab["host"], "0.0.0.0", 8080):
        for more in (["--plan"], ["--create-netns"]):
            refused = hand("ADD", "lab", "web" if more == ["--create-netns"] else "c1", "-p", "8080:80", *more)
            assert (refused.returncode, refused.stdout) == (1, "")
            assert refused.stderr.startswith(SAID)
            assert refused.stderr.endswith("): stop it, or publish another port\n")
            assert refused.stderr.count("\n") == 1
        ranged = hand("ADD", "lab", "c1", "-p", "8000-8100:8000-8100", "-p", "53:53/udp")
        assert ranged.stderr.startswith(SAID)
        assert links(hand.lab, "host") == ["lan0", "lo"]
        hand.well("ADD", "lab", "c1", "-p", "8081:80")
    hand.well("DEL", "lab", "c1")
    hand.well("ADD", "lab", "c1", "-p", "8080:80")


def test_a_network_that_says_warn_decides_for_itself(hand: Hand) -> None:
    change(hand, 1, hostListener="warn")
    with holding(hand.lab["host"], "0.0.0.0", 8080):
        done = hand("ADD", "lab", "c1", "-p", "8080:80")
    assert done.returncode == 0
    assert "cni-py: port 8080/tcp on 0.0.0.0 is in use by python" in done.stderr


def test_a_program_that_comes_later_is_noted_by_check(hand: Hand) -> None:
    hand.well("ADD", "lab", "c1", "-p", "8080:80")
    assert "note:" not in hand.well("CHECK", "lab", "c1")
    with holding(hand.lab["host"], "127.0.0.1", 8080):
        checked = hand.well("CHECK", "lab", "c1")
    assert "everything is as ADD made it\nnote: port 8080/tcp on 0.0.0.0 is in use by python" in checked


def test_families_that_the_network_does_not_have_are_not_looked_at(hand: Hand) -> None:
    ipam = {**NETWORK["plugins"][0]["ipam"], "ranges": ONLY4}
    with holding(hand.lab["host"], "::", 8080, v6only=True):
        assert hand("ADD", "lab", "c1", "-p", "8080:80").stderr.startswith(SAID.replace("0.0.0.0", "[::]"))
        change(hand, 0, ipam=ipam)  # whose routes name IPv6 all the same
        hand.well("ADD", "lab", "c1", "-p", "8080:80")
