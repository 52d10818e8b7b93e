"""How long a published port does not answer when its rules, bridge or address are removed while `cni-py restore --watch` runs.

No time is asserted: the figures are printed at the end of the run, and bench/gaps.py measures them at rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from firewalld import Firewalld
from lab import Lab
from outage import Client, serving
from runtime import Network, Plugins, mapping

from tests.clients import fetch_debs
from tests.commands.watching import Watching, with_setting
from tests.lacking import missing

pytestmark = pytest.mark.ours_alone
WEB, HOST4 = 8080, "198.51.100.1"


@pytest.fixture(scope="module")
def machine(plugins: Plugins, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab.from_yaml("lan.yaml") as lab:
        network = Network(lab, plugins)
        network.attach("c1", mapping(WEB, 80))
        command = with_setting("WITHIN_S", 0)  # else who damages again is answered later
        with serving(lab, "c1", 80), Watching(lab, tmp_path_factory.mktemp("watch"), command):
            yield lab


def gap_ms(lab: Lab, damage: Callable[[], object]) -> float:
    with Client(lab, "client", HOST4, WEB) as client:
        damage()
        client.await_answers()
    assert client.answers > 0
    return client.gap_ms


@pytest.mark.parametrize(
    "damage",
    [
        "true",
        "nft flush ruleset",
        "nft delete table inet cni_py",
        "ip address delete 192.0.2.1/24 dev cni0",
        "ip link delete cni0",
    ],
)
def test_the_port_answers_again(machine: Lab, damage: str, record_property: Callable[[str, object], None]) -> None:
    gap = gap_ms(machine, lambda: machine["host"].run(damage.split(), check=True))
    record_property("gap", ("nothing" if damage == "true" else damage, gap))


def test_firewalld_that_reloads_leaves_the_port_or_it_is_back(
    machine: Lab, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    try:
        debs = fetch_debs.fetch()
    except (fetch_debs.Unavailable, OSError) as error:
        missing(f"Debian's firewalld cannot be had: {error}")
    with Firewalld(machine, debs, tmp_path) as firewalld:
        for word in ("--reload", "--complete-reload"):
            gap = gap_ms(machine, lambda: firewalld.reload(word))  # noqa: B023  called at once
            record_property("gap", (f"firewall-cmd {word}", gap))
