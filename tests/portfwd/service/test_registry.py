"""What the registry decides: all or none, who waits, what is undone. On the loopback of a node, without a process."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TypeVar

import pytest
from lab import Lab

from portfwd.errors import NotFound, PortfwdError, PortInUse, Usage
from portfwd.mapping import Mapping
from portfwd.service.registry import Registry
from portfwd.service.requests import Publish, Remove
from portfwd.service.store import Store
from tests.portfwd.stage import mapping_of, started

T = TypeVar("T")


def inside(machine: Lab, state: object, work: Callable[[Registry], T]) -> T:
    """Run something with a registry; a port that is taken is 8082."""

    def run() -> T:
        with socket.create_server(("127.0.0.1", 8082)), started(str(state)) as registry:
            return work(registry)

    return machine["host"].python(run)


def one(name: str, port: int, **fields: object) -> Mapping:
    return mapping_of(
        **{"id": name, "first": port, "last": port, "targets": [{"address": "127.0.0.1", "port": 90}], **fields}
    )


def publish(registry: Registry, *mappings: Mapping, may_fail: bool = False, replace: bool = False) -> list[str]:
    answer = registry.publish(Publish(mappings, replace, may_fail), 0, [])
    notes = answer["notes"]
    assert isinstance(notes, list)
    return notes


def state(registry: Registry) -> tuple[list[str], list[str]]:
    """The ids that are served, and those on disk."""
    return sorted(registry.relay.mappings), sorted(mapping.id for mapping in registry.store.load())


def test_a_request_is_published_in_full_or_not_at_all(machine: Lab, tmp_path: object) -> None:
    def work(registry: Registry) -> tuple[type[Exception], tuple[list[str], list[str]]]:
        publish(registry, one("before", 8080))
        with pytest.raises(PortInUse) as caught:
            publish(registry, one("a", 8081), one("b", 8082))
        return caught.type, state(registry)

    assert inside(machine, tmp_path, work) == (PortInUse, (["before"], ["before"]))


def test_with_may_fail_the_rest_is_published_and_malformed_requests_still_fail(machine: Lab, tmp_path: object) -> None:
    def work(registry: Registry) -> tuple[list[str], tuple[list[str], list[str]]]:
        notes = publish(registry, one("a", 8081), one("b", 8082), may_fail=True)
        with pytest.raises(Usage, match="already"):
            publish(registry, one("c", 8083), one("a", 8084), may_fail=True)
        return notes, state(registry)

    notes, found = inside(machine, tmp_path, work)
    assert len(notes) == 1
    assert notes[0].startswith("left out: 8082/tcp on 127.0.0.1")
    assert found == (["a"], ["a"])


def test_a_replacement_that_fails_leads_where_it_led(machine: Lab, tmp_path: object) -> None:
    def work(registry: Registry) -> tuple[int, int]:
        publish(registry, one("a", 8081))
        other = one("a", 8081, targets=[{"address": "127.0.0.1", "port": 99}])
        with pytest.raises(PortInUse):
            publish(registry, other, one("b", 8082), replace=True)
        before = registry.relay.mappings["a"].targets[0].port
        publish(registry, other, replace=True)
        return before, registry.relay.mappings["a"].targets[0].port

    assert inside(machine, tmp_path, work) == (90, 99)


def test_what_is_on_disk_and_cannot_be_published_waits_and_is_tried_again(machine: Lab, tmp_path: object) -> None:
    def work(registry: Registry) -> list[object]:
        registry.store.save([one("b", 8082), one("a", 8081)])
        found: list[object] = []
        registry.restore()
        listed = registry.listing()["mappings"]
        assert isinstance(listed, list)
        found.append({raw["id"]: "waiting" in raw["state"] for raw in listed})
        with pytest.raises(Usage, match="waits to be published"):
            publish(registry, one("b", 8085, owner="pid 1 2"))
        registry.retry()
        found.append(sorted(registry.waiting))
        registry.remove(Remove(("b",), "", 0.0), 0)
        found.append(state(registry))
        return found

    assert inside(machine, tmp_path, work) == [{"a": False, "b": True}, ["b"], (["a"], ["a"])]


def test_removal_by_ids_needs_all_of_them_and_by_owner_none(machine: Lab, tmp_path: object) -> None:
    def work(registry: Registry) -> list[object]:
        publish(registry, one("a", 8081), one("b", 8083, owner="attachment 0123456789abcdef"))
        with pytest.raises(NotFound, match="no mapping x"):
            registry.remove(Remove(("a", "x"), "", 0.0), 0)
        found: list[object] = [sorted(registry.relay.mappings)]
        found.append(registry.remove(Remove((), "attachment 0123456789abcdef", 0.0), 0)["ids"])
        found.append(registry.remove(Remove((), "attachment 0123456789abcdef", 0.0), 0)["ids"])
        found.append(state(registry))
        return found

    assert inside(machine, tmp_path, work) == [["a", "b"], ["b"], [], (["a"], ["a"])]


def test_sockets_come_with_one_new_mapping(machine: Lab, tmp_path: object) -> None:
    def work(registry: Registry) -> list[str]:
        with socket.create_server(("127.0.0.1", 8086)) as given, open("/dev/null", "rb") as file:
            wrong = ([given.fileno()] * 2, [file.fileno()], [given.fileno()])
            asked = ([one("a", 8086), one("b", 8087)], [one("a", 8086)], [one("a", 8089)])
            said = []
            for mappings, fds in zip(asked, wrong, strict=True):
                with pytest.raises(PortfwdError) as caught:
                    registry.publish(Publish(tuple(mappings), replace=False, may_fail=False), 0, fds)
                said.append(str(caught.value))
            registry.publish(Publish((one("a", 8086),), replace=False, may_fail=False), 0, [given.fileno()])
        with socket.create_connection(("127.0.0.1", 8086), 1.0):
            return [*said, *registry.relay.mappings]

    many, file, other, name = inside(machine, tmp_path, work)
    assert many == "sockets come with one new mapping"
    assert file.startswith("a descriptor that came along is not a socket")
    assert other.startswith("the socket given is bound to 127.0.0.1 port 8086, which is not the mapping's")
    assert name == "a"


def test_what_waits_is_tried_again(machine: Lab, tmp_path: object) -> None:
    Store(str(tmp_path)).save([one("a", 8080), one("b", 8082)])

    def retry() -> list[list[str]]:
        """What is published and what waits: at the start, while the port is somebody's, and when it is free."""
        with socket.create_server(("127.0.0.1", 8082)) as other, started(str(tmp_path)) as registry:
            found = [[*registry.relay.mappings, *registry.waiting]]
            registry.retry()
            found.append(list(registry.waiting))
            other.close()
            registry.retry()
            return [*found, [*registry.relay.mappings], list(registry.waiting)]

    assert machine["host"].python(retry) == [["a", "b"], ["b"], ["a", "b"], []]
