"""`cni-py ipam` on a lab's host: what both host-locals make of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from lab import Lab

from tests.commands.hand import Hand, names

COMMAND = Path(sys.executable).with_name("cni-py")
RESERVED = "/var/lib/cni/networks/lab"


def ipam(lab: Lab, *words: str, status: int = 0) -> str:
    done = lab["host"].run([str(COMMAND), "ipam", *words])
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def held(lab: Lab) -> dict[str, dict[str, Any]]:
    """The reservations of the only pool, by address."""
    (pool,) = json.loads(ipam(lab, "list", "--json"))["pools"]
    return {one["address"]: one for one in pool["reservations"]}


def address(hand: Hand, name: str) -> str:
    return str(hand.json("ADD", "lab", name)["ips"][0]["address"]).partition("/")[0]


def test_a_reserved_address_is_given_to_nobody_and_a_released_one_to_the_next(hand: Hand) -> None:
    lab = hand.lab
    hand.define("other", plugins=[])  # a network that cannot be read does not matter
    assert "no such" not in ipam(lab, "reserve", "192.0.2.2", "--network", "lab", "--for", "the  printer")
    assert "for operator: the printer" in ipam(lab, "reserve", "192.0.2.2", "--network", "lab", "--for", "me", status=1)
    assert address(hand, "c1") == "192.0.2.3"
    found = held(lab)
    assert (found["192.0.2.2"]["container_id"], found["192.0.2.2"]["live"]) == ("operator: the printer", "alive")
    assert (found["192.0.2.3"]["container_id"], found["192.0.2.3"]["live"]) == ("c1", "alive")
    lines = ipam(lab, "list").splitlines()
    assert lines[0].split() == ["NETWORK", "ADDRESS", "SINCE", "HOLDER", "STATE"]
    assert "operator: the printer" in lines[1]
    assert "removed 0 things" in lab["host"].run([str(COMMAND), "gc"]).stdout

    assert "c1 eth0 has 192.0.2.3, and lives" in ipam(lab, "release", "192.0.2.3", status=1)
    assert "192.0.2.3" in held(lab)
    ipam(lab, "release", "192.0.2.3", "--force")
    ipam(lab, "release", "192.0.2.2")
    assert "not reserved" in ipam(lab, "release", "192.0.2.2", status=1)
    lab["host"].run(["rm", f"{RESERVED}/last_reserved_ip.0"], check=True)  # else the next one is chosen
    assert address(hand, "c2") == "192.0.2.2"
    four, six = (line.split() for line in ipam(lab, "stats", "--network", "lab").splitlines()[1:])
    assert four == ["lab", "192.0.2.1-192.0.2.254", "253", "0", "%", "1", "0", "0", "192.0.2.2"]
    assert six[2:4] == ["18,446,744,073,709,551,614", "-"]


def test_holders_that_are_gone(hand: Hand) -> None:
    lab = hand.lab
    hand.well("ADD", "lab", "web", "--create-netns")
    lab["host"].run(["ip", "netns", "delete", "web"], check=True)
    assert {one["live"] for one in held(lab).values()} == {"dead"}
    assert "`cni-py gc` gives back" in ipam(lab, "stats")
    ipam(lab, "release", "192.0.2.2")
    ipam(lab, "release", "2001:0db8:42::2")
    assert [name for name in lab["host"].python(names, RESERVED) if name[0] == "1" or ":" in name] == []


def test_what_is_refused(hand: Hand) -> None:
    lab = hand.lab
    hand.well("ADD", "lab", "c1")
    outside = ipam(lab, "reserve", "192.0.3.9", "--network", "lab", "--for", "x", status=1)
    assert "in none of the network's ranges: 192.0.2.1-192.0.2.254" in outside
    assert "not an IP address" in ipam(lab, "reserve", "x", "--network", "lab", "--for", "x", status=2)
    assert "--for takes" in ipam(lab, "reserve", "192.0.2.9", "--network", "lab", "--for", "\x1b[31m", status=2)
    assert "no network none" in ipam(lab, "reserve", "192.0.2.9", "--network", "none", "--for", "x", status=3)
    lab["host"].run(["cp", "-r", RESERVED, f"{RESERVED}2"], check=True)
    assert "--network says which" in ipam(lab, "release", "192.0.2.2", status=2)
    evil = "printf 'a\\033[31mb\\r\\neth0' > " + f"{RESERVED}/192.0.2.66"
    lab["host"].run(["sh", "-c", evil], check=True)
    text = ipam(lab, "list")
    assert "\x1b" not in text
    assert "a\\x1b[31mb eth0" in text
