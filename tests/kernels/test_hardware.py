"""host-device with a card on the PCI bus, which comes back to the host by itself when the container's namespace ends.

Only where CNI_PY_SPARE_CARD names one that nothing uses, in the initial network namespace, where such cards fall: that of an
emulated machine (make test-kernels).
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lacking import unavailable

CARD = os.environ.get("CNI_PY_SPARE_CARD", "")
NETNS = "/run/netns/with-card"
FALL_LIMIT_S = 60.0
pytestmark = [pytest.mark.debian_kernel, pytest.mark.xdist_group("card")]  # there is one card


def ip(*words: str) -> Any:
    done = subprocess.run(["ip", "-json", "-details", *words], check=True, capture_output=True, text=True, timeout=60)
    return json.loads(done.stdout) if done.stdout.strip() else None


def call(bin_dir: Path, verb: str, netns: str = NETNS, **keys: object) -> dict[str, Any]:
    """Run host-device on this machine; it must succeed."""
    conf = {"cniVersion": "1.1.0", "name": "cards", "type": "host-device", **keys}
    done = subprocess.run(
        [bin_dir / "host-device"],
        input=json.dumps(conf),
        env={
            "PATH": os.environ["PATH"],
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": "with-card",
            "CNI_NETNS": netns,
            "CNI_IFNAME": "net0",
            "CNI_PATH": str(bin_dir),
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{verb}: {done.stdout}{done.stderr}"
    found: dict[str, Any] = json.loads(done.stdout) if done.stdout else {}
    return found


def card() -> dict[str, Any]:
    """What stays of it wherever it goes: name, alias and whether it is up."""
    (link,) = ip("link", "show", CARD)
    return {"alias": link.get("ifalias", ""), "up": "UP" in link["flags"], "mac": link["address"]}


@pytest.fixture
def container() -> Iterator[None]:
    if not CARD:
        unavailable("a network card that nothing uses")
    ip("netns", "add", "with-card")
    yield
    if Path(NETNS).exists():
        ip("netns", "delete", "with-card")


@pytest.mark.parametrize("by", ["device", "hwaddr", "pciBusID", "kernelpath", "deviceID"])
def test_a_card_is_found_moves_and_comes_back(our_bin_dir: Path, container: None, by: str) -> None:
    bus = Path(f"/sys/class/net/{CARD}/device").resolve()
    keys: dict[str, Any] = {
        "device": {"device": CARD},
        "hwaddr": {"hwaddr": card()["mac"]},
        "pciBusID": {"pciBusID": bus.name},
        "kernelpath": {"kernelpath": str(bus)},
        "deviceID": {"runtimeConfig": {"deviceID": bus.name}},
    }[by]
    before = card()
    result = call(our_bin_dir, "ADD", **keys)
    (inside,) = ip("-netns", "with-card", "link", "show", "net0")
    assert (inside["ifalias"], inside["address"]) == (CARD, before["mac"])
    call(our_bin_dir, "CHECK", prevResult=result, **keys)
    call(our_bin_dir, "STATUS", **keys)
    call(our_bin_dir, "DEL", prevResult=result, **keys)
    assert card() == before


@pytest.mark.parametrize("record", ["kept", "lost"])
def test_a_card_that_fell_back_gets_its_name_again(our_bin_dir: Path, container: None, record: str) -> None:
    before = card()
    result = call(our_bin_dir, "ADD", device=CARD)
    ip("netns", "delete", "with-card")
    end = time.monotonic() + FALL_LIMIT_S
    while not [link for link in ip("link") if link.get("ifalias") == CARD] and time.monotonic() < end:
        time.sleep(0.1)
    (fallen,) = [link for link in ip("link") if link.get("ifalias") == CARD]
    assert fallen["ifname"] != CARD
    if record == "lost":
        subprocess.run(["rm", "-rf", "/run/cni-py/attachments"], check=True, timeout=60)
    for _ in range(2):
        call(our_bin_dir, "DEL", "", prevResult=result, device=CARD)
    assert card() == before
