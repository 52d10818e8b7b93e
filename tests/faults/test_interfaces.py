"""The plugins ptp, macvlan and host-device, which make the container's interface: failed or killed anywhere, nothing is left."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from lab import Lab
from runtime import Outcome, Plugins

from tests.conftest import need_root
from tests.faults import trial
from tests.faults.trial import Trial, host_of
from tests.plugins.bridge_network import BridgeNetwork
from tests.plugins.link_networks import HostDeviceNetwork, MacvlanNetwork, PtpNetwork

if TYPE_CHECKING:
    from tests.plugins.bridge_network import Conf

NETWORKS: dict[str, type[BridgeNetwork]] = {
    "ptp": PtpNetwork,
    "macvlan": MacvlanNetwork,
    "host-device": HostDeviceNetwork,
}


class Connected(Trial):
    """A container whose interface the plugin makes, with an address that is reserved nowhere.

    What host-local does is gone through in test_faults; here it is one operation among others, if it is asked for.
    """

    def __init__(self, network: BridgeNetwork) -> None:
        self.network = network
        self.reserving: Conf = network.conf("1.1.0", mtu=1400, ipMasq=True)
        address = {"address": f"{network.address(4, 2)}/24", "gateway": network.address(4, 1)}
        self.static: Conf = {
            **self.reserving,
            "ipam": {**self.reserving["ipam"], "type": "static", "addresses": [address]},
        }
        self.conf = self.static
        network.warm(self.reserving)
        network.warm(self.static)

    def go(self, verb: str, fault: str = "", **keys: object) -> Outcome:
        return self.network.run(verb, {**self.conf, **keys}, **({"CNI_TEST_FAULT": fault} if fault else {}))

    def records(self) -> list[str]:
        return self.network.records()

    def state(self) -> dict[str, object]:
        state = self.network.state()
        host = state["host"]
        assert isinstance(host, dict)
        return {**state, "host": host_of(host)}


def delete_without_namespace(subject: Trial) -> None:
    """What the record says must do."""
    assert isinstance(subject, Connected)
    outcome = subject.network.run("DEL", subject.conf, netns="")
    assert outcome.status == 0, outcome.stdout


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    need_root()
    with Lab.from_yaml("lan.yaml") as lab:
        yield lab


@pytest.fixture(scope="module", params=[*NETWORKS])
def subject(request: pytest.FixtureRequest, lab: Lab, saboteurs: Plugins) -> Iterator[Connected]:
    network = NETWORKS[request.param](lab, saboteurs)
    yield Connected(network)
    network.close()


@pytest.fixture
def reserving(subject: Connected) -> Iterator[Connected]:
    """With host-local."""
    subject.conf = subject.reserving
    yield subject
    subject.conf = subject.static


def test_an_add_of_which_an_operation_fails_takes_everything_back(reserving: Connected) -> None:
    trial.fail_add(reserving, "apply", "fail-after")


def test_an_add_that_fails_anywhere_leaves_nothing(subject: Connected) -> None:
    trial.fail_add(subject, "change", "fail")


def test_what_a_killed_add_left_is_removed_by_del(subject: Connected) -> None:
    trial.kill_add(subject, delete_without_namespace)


@pytest.mark.parametrize("then", trial.RECOVERIES)
def test_what_a_killed_add_left_is_removed_by_others(subject: Connected, then: str) -> None:
    """At every other point: after the one before it the same is there, or less."""
    trial.kill_add(subject, trial.RECOVERIES[then], start=1, step=2)


@pytest.mark.parametrize("how", ["kill", "fail"])
def test_a_del_that_is_killed_or_fails_can_be_done_again(reserving: Connected, how: str) -> None:
    trial.spoil_del(reserving, how)
