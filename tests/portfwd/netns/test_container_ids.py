"""Container IDs: which namespace one means, by attachment records and by libcni's cache."""

from __future__ import annotations

import contextlib
import socket
import sys
import time

from lab import Lab

from cni_py.attachment import naming, records
from cni_py.protocol import cache
from cni_py.protocol.cache import Entry
from portfwd.errors import PortfwdError
from portfwd.mapping import Place
from portfwd.netns.sockets import LOOK_S, SO_NETNS_COOKIE, UNKNOWN_S, Places
from tests.portfwd.netns.inside import (
    TCP,
    Clock,
    container,
    end,
    reached,
)


def record(container_id: str, path: str, number: int, network: str = "net", plugin: str = "bridge") -> None:
    made = records.Record(naming.Attachment(network, container_id, "eth0"), plugin)
    made.netns, made.container_cookie = path, number
    made.save()
    made.finish()


def cookie_of(pid: int) -> int:
    with contextlib.closing(Places()) as there, there.socket(Place(pid=pid), socket.AF_INET, TCP) as sock:
        return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8), sys.byteorder)


def outcome(there: Places, wanted: str) -> str:
    """Who answers, or what is wrong and of which kind."""
    try:
        return reached(there, Place(container=wanted))
    except PortfwdError as error:
        return f"{error.kind}: {error}"


def look_up_containers() -> dict[str, str]:
    """Everything that a container ID may mean; on the lab's host, whose /run and /var/lib are its own."""
    found = {}
    with contextlib.closing(Places()) as there, container("web") as web, container("db") as db:
        net = {pid: f"/proc/{pid}/ns/net" for pid in (web, db)}
        found["before"] = outcome(there, "a1")
        record("a1b2", net[web], cookie_of(web))
        record("a1b2", net[web], cookie_of(web), plugin="tuning")
        record("a1b2", net[web], cookie_of(web), network="other")
        time.sleep(UNKNOWN_S)
        found["prefix"] = outcome(there, "a1")
        cache.save(Entry("net", "a1c3", "eth0", netns=net[db]))
        found["cached"] = outcome(there, "a1c")
        found["ambiguous"] = outcome(there, "a1")  # of which one is open already
        found["ambiguous anew"] = outcome(there, "a")
        record("a1", net[db], 0)
        found["exact"] = str(Places().describe(Place(container="a1")) == net[db])
        record("gone", "/run/netns/gone", 0)
        found["gone"] = outcome(there, "gone")
        record("stale", net[db], cookie_of(web))
        found["stale"] = outcome(there, "stale")
        record("moved", "/run/netns/old", 0, network="old")
        record("moved", net[db], cookie_of(db), network="new")
        found["moved"] = outcome(there, "moved")
        record("two", net[web], 0, network="one")
        record("two", net[db], 0, network="two")
        found["two"] = outcome(there, "two").replace(net[web], "WEB").replace(net[db], "DB")
        for number in range(12):
            record(f"many{number:02}", net[web], 0)
        found["many"] = outcome(there, "many")
        found["nothing"] = outcome(there, "f00")
    return found


def test_a_container_is_found_by_its_id_in_records_and_in_libcnis_cache(lab: Lab) -> None:
    found = lab["host"].python(look_up_containers)
    assert (found["prefix"], found["cached"], found["exact"], found["moved"]) == ("web", "db", "True", "db")
    assert found["before"].startswith("not-found: container a1: nothing is known of it")
    assert found["nothing"].startswith("not-found: container f00: nothing is known of it")
    assert found["ambiguous"] == "web", "what was meant when it was opened stays"
    assert found["ambiguous anew"] == "usage: container a: several container IDs begin like that: a1b2, a1c3"
    assert found["gone"] == "not-found: container gone: there is no network namespace at /run/netns/gone"
    assert found["stale"].startswith("not-found: container stale: its network namespace is gone: /proc/")
    assert found["two"].startswith("usage: container two: it has several network namespaces: name one with --netns: ")
    assert {"WEB", "DB"} <= set(found["two"].replace(",", "").split())
    assert found["many"].endswith("many06, many07 and 4 more")


def restart_a_container() -> list[str]:
    """Its record names another path after the restart, while a process keeps the old namespace, and its path, alive."""
    found = []
    with contextlib.closing(Places(clock := Clock())) as there, container("old") as old, container("new") as new:
        record("web", f"/proc/{old}/ns/net", 0)
        found.append(outcome(there, "web"))
        record("web", f"/proc/{new}/ns/net", 0)
        clock.now += LOOK_S
        there.forget(Place(container="web"))
        found.append(outcome(there, "web"))
        end(new)
        clock.now += LOOK_S
        found.append(outcome(there, "web").replace(str(new), "PID"))
    return found


def test_a_restarted_container_is_found_again(lab: Lab) -> None:
    gone = "not-found: container web: there is no network namespace at /proc/PID/ns/net"
    assert lab["host"].python(restart_a_container) == ["old", "new", gone]
