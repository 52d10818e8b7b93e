"""chain: one plugin of its list fails or is killed anywhere, and nothing of the whole list is left.

Each plugin alone is gone through at every point in the other files; here some of their points are enough.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from lab import Lab
from runtime import Outcome, Plugins

from tests.conftest import need_root
from tests.faults import trial
from tests.faults.trial import Trial
from tests.plugins.two_ways import CHAIN, LIST, TwoWays


class Joined(Trial):
    """A network of the type chain."""

    leaves_something = True

    def __init__(self, network: TwoWays) -> None:
        self.network = network
        network.members[1]["runtimeConfig"] = {
            "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]
        }
        network.warm()

    def go(self, verb: str, fault: str = "", **keys: object) -> Outcome:
        (conf,) = self.network.confs(CHAIN, **keys)
        return self.network.run(verb, conf, **({"CNI_TEST_FAULT": fault} if fault else {}))

    def records(self) -> list[str]:
        return self.network.records()

    def state(self) -> dict[str, object]:
        return self.network.state()


def delete_one_by_one(subject: Trial) -> None:
    """The network has been changed over to a list since; there is no namespace any more to go by."""
    assert isinstance(subject, Joined)
    subject.network.well("DEL", LIST, CNI_NETNS="")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    need_root()
    with Lab.from_yaml("lan.yaml") as lab:
        yield lab


@pytest.fixture(scope="module")
def subject(lab: Lab, saboteurs: Plugins) -> Iterator[Joined]:
    network = TwoWays(lab, saboteurs)
    yield Joined(network)
    network.close()


def test_an_add_of_which_an_operation_fails_takes_everything_back(subject: Joined) -> None:
    trial.fail_add(subject, "apply", "fail-after")


def test_what_a_killed_add_left_is_removed_by_del(subject: Joined) -> None:
    trial.kill_add(subject, trial.delete, step=5)


def test_what_a_killed_add_left_is_removed_by_the_dels_of_a_list(subject: Joined) -> None:
    trial.kill_add(subject, delete_one_by_one, start=1, step=6)


@pytest.mark.parametrize("then", trial.RECOVERIES)
def test_what_a_killed_add_left_is_removed_by_others(subject: Joined, then: str) -> None:
    trial.kill_add(subject, trial.RECOVERIES[then], start=2, step=9)


@pytest.mark.parametrize(("how", "start"), [("kill", 0), ("fail", 2)])
def test_a_del_that_is_killed_or_fails_can_be_done_again(subject: Joined, how: str, start: int) -> None:
    trial.spoil_del(subject, how, start, 5)
