"""Fifty containers at once on one network: no address twice, no error, nothing left."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from lab import Lab
from runtime import Network, Outcome, Plugins, mapping
from snapshot import difference

from tests.faults.conftest import host_state
from tests.faults.crowd import CALL_S, Job, run_all

NAMES = [f"n{number}" for number in range(50)]

Call = tuple[str, str, str]  # verb, plugin, container


@pytest.fixture
def network(lab: Lab, plugins: Plugins) -> Network:
    """A network that has had a container, so that what is shared has been made."""
    network = Network(lab, plugins, "crowd")
    network.attach("c1", mapping(8080, 80))
    network.detach("c1")
    for number, name in enumerate(NAMES):
        lab.add_container(name)
        network.ports[name] = [mapping(10000 + number, 80), mapping(10000 + number, 80, "udp")]
    return network


@pytest.fixture
def at_once(lab: Lab, network: Network) -> Callable[[list[Call]], list[Outcome]]:
    """Run calls at once and remember the results of the ADDs."""

    def job(call: Call) -> Job:
        verb, plugin, name = call
        conf = network.bridge() if plugin == "bridge" else network.portmap(name)
        if name in network.results:
            conf["prevResult"] = network.results[name]
        environment = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": name,
            "CNI_NETNS": f"/run/netns/{name}",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(network.plugins.directory),
        }
        return Job(str(network.plugins.directory / plugin), json.dumps(conf).encode(), environment)

    def at_once(calls: list[Call]) -> list[Outcome]:
        outcomes = lab["host"].python(run_all, [job(call) for call in calls], timeout_s=2 * CALL_S)
        assert isinstance(outcomes, list)
        bad = {call: outcome for call, outcome in zip(calls, outcomes, strict=True) if outcome.status}
        assert not bad, "\n".join(f"{call}: {outcome.stdout}{outcome.stderr}" for call, outcome in bad.items())
        for (verb, _, name), outcome in zip(calls, outcomes, strict=True):
            if verb == "ADD":
                network.results[name] = outcome.json
            else:
                network.results.pop(name, None)
        return outcomes

    return at_once


def of_all(verb: str, plugin: str, names: list[str]) -> list[Call]:
    return [(verb, plugin, name) for name in names]


def addresses(network: Network) -> list[str]:
    return sorted(ip["address"] for result in network.results.values() for ip in result["ips"])


@pytest.mark.ours_alone
def test_fifty_at_once(lab: Lab, network: Network, at_once: Callable[[list[Call]], list[Outcome]]) -> None:
    before = host_state(lab)
    at_once(of_all("ADD", "bridge", NAMES))
    found = addresses(network)
    assert len(found) == len(set(found)) == 2 * len(NAMES)
    at_once(of_all("ADD", "portmap", NAMES))
    early, late = NAMES[::2], NAMES[1::2]
    at_once(of_all("DEL", "portmap", early))
    at_once(of_all("DEL", "bridge", early))
    at_once([*of_all("ADD", "bridge", early), *of_all("DEL", "portmap", late)])
    at_once([*of_all("ADD", "portmap", early), *of_all("DEL", "bridge", late)])
    found = addresses(network)
    assert len(found) == len(set(found)) == 2 * len(early)
    at_once(of_all("DEL", "portmap", early))
    at_once(of_all("DEL", "bridge", early))
    assert difference(before, host_state(lab)) == ""
