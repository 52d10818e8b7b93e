"""`cni-py explain` on a lab's host, where one thing at a time is damaged.

It names that hop, and says of each client what the client really gets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from lab import Lab
from runtime import ALL, Plugins

from cni_py.explain.walk import Explained
from tests.commands.explain_damages import CASES, RELAYED, STOPPED, Case
from tests.commands.explain_scene import CLIENT, HOST, Attempt, Place, Relays, Scene, places
from tests.conftest import need_root
from tests.lacking import unavailable

MENDS_MAX = 4  # a request and its answer, in both families


@pytest.fixture(scope="module")
def scene(our_bin_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    need_root()
    with Lab.from_yaml("bridges.yaml") as lab:
        yield Scene.build(lab, Plugins("ours", our_bin_dir, ALL), tmp_path_factory.mktemp("explain"))


def kinds(text: str) -> set[Place]:
    """ "lan4 host6" as places; "all4" is every kind."""
    every = ("lan", "host", "loopback", "neighbour", "other-bridge", "itself")
    found: set[Place] = set()
    for word in text.split():
        kind, family = word[:-1], int(word[-1])
        found |= {(one, family) for one in (every if kind == "all" else (kind,))}
    return found


def check(scene: Scene, case: Case) -> Explained:
    """What explain says of each client is what the client gets; those that are hit are told the case's code."""
    answer = scene.explain(case.port)
    told = places(answer)
    real = scene.really(
        scene.attempts(case.port, case.server), {place for place, way in told.items() if way.verdict == "answers"}
    )
    assert told
    assert told.keys() <= real.keys()
    wrong = []
    for place, way in told.items():
        name, _, rest = real[place].partition(" ")
        served = name == case.server
        said = way.deciding.code if way.deciding else "answers"
        if way.verdict == "unknown":
            if not case.unsure:
                wrong.append(f"{place}: cannot say: {said}")
        elif (way.verdict == "answers") != served:
            wrong.append(f"{place}: {way.verdict} {said}, but the client got {real[place]!r}")
        elif served and way.sees != rest.split()[0]:
            wrong.append(f"{place}: seen as {way.sees}, but the server saw {rest}")
    if case.unsure:
        assert {way.deciding.code for way in told.values() if way.verdict == "unknown" and way.deciding} == {case.code}
    codes = {
        place: way.deciding.code
        for place, way in told.items()
        if way.deciding and way.verdict == "fails" and way.promised
    }
    expected = dict.fromkeys(kinds(case.hits), case.code)
    for text, code in case.other_codes.items():
        expected |= dict.fromkeys(kinds(text), code)
    expected = {place: code for place, code in expected.items() if place in codes or told[place].promised}
    assert not wrong, "\n".join(wrong)
    assert codes == expected
    return answer


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_damage(scene: Scene, case: Case) -> None:
    damaged(scene, case)


def test_a_flow_of_before_leads_elsewhere(scene: Scene) -> None:
    """A client with a port of its own sent before the port was published, and goes on: its datagrams follow the flow."""
    client = {("lan", 4): Attempt(scene.lab["client"], HOST[4], 8053, "udp", 40000)}
    scene.shell("host", "nft delete element inet cni_py any4 { udp . 8053 }")
    try:
        assert scene.really(client, set()) == {("lan", 4): ""}
        scene.shell("host", "nft add element inet cni_py any4 { udp . 8053 : 192.0.2.2 . 53 }")
        answer = scene.explain("8053/udp", f"{CLIENT[4]}:40000")
        assert answer.verdict == "fails"
        assert [way.deciding.code for way in answer.ways if way.deciding] == ["flow-elsewhere"]
        assert scene.really(client, set()) == {("lan", 4): ""}
        (way,) = scene.explain("8053/udp", CLIENT[4]).ways  # from a new port
        assert way.verdict == "answers"
        assert "flow" in [hop.code for hop in way.hops]
        fresh = replace(client["lan", 4], source_port=0)
        assert scene.really({("lan", 4): fresh}, {("lan", 4)})["lan", 4].startswith("a1 ")
    finally:
        scene.restore()


@pytest.mark.parametrize("family", [4, 6])
def test_what_mends_a_lost_gateway_is_no_gc(scene: Scene, family: int) -> None:
    """The container is there; its packets find nobody."""
    address = {4: "192.0.2.1/24", 6: "2001:db8:42::1/64"}[family]
    scene.shell("host", f"ip address del {address} dev cni0; ip -n a1 -{family} neigh flush dev eth0")
    try:
        way = places(scene.explain("8080", "itself"))["itself", family]
        assert way.deciding is not None
        assert (way.deciding.code, way.deciding.mend) == ("address-missing", "cni-py restore")
    finally:
        scene.restore()


VLAN = Case(
    "vlan", "vlan", "all4 all6",
    "bridge vlan del dev {v1} vid 1; bridge vlan add dev {v1} vid 7 pvid untagged",
    "bridge vlan del dev {v1} vid 7; bridge vlan add dev {v1} vid 1 pvid untagged; ip link set cni0 type bridge vlan_filtering 0",
)  # fmt: skip


@pytest.mark.debian_kernel
def test_another_vlan(scene: Scene) -> None:
    """Without VLANs in the kernel: tests/unit/explain/test_walk.py."""
    if scene.lab["host"].run(["ip", "link", "set", "cni0", "type", "bridge", "vlan_filtering", "1"]).returncode:
        unavailable("VLANs of bridges (CONFIG_BRIDGE_VLAN_FILTERING)")
    damaged(scene, VLAN)


INGRESS = """
nft 'add table netdev drops; add chain netdev drops one { type filter hook ingress device lan0 priority 0; }'
nft add rule netdev drops one tcp dport 8080 drop
"""


def test_a_drop_as_soon_as_the_link_has_received_it(scene: Scene) -> None:
    """nft 1.0.6 does not list the device of such a chain as JSON; the model has it from the kernel."""
    scene.shell("host", INGRESS)
    try:
        told = {place: way for place, way in places(scene.explain("8080")).items() if way.promised}
        expected = {place: "filtered-ingress" for place in kinds("lan4 lan6") if place in told}
        assert {place: way.deciding.code for place, way in told.items() if way.deciding} == expected
    finally:
        scene.shell("host", "nft delete table netdev drops")


@pytest.fixture(scope="module")
def relays(scene: Scene) -> Iterator[Relays]:
    with scene.relaying() as running:
        yield running


@pytest.mark.parametrize("case", RELAYED, ids=lambda case: case.name)
def test_relay(scene: Scene, relays: Relays, case: Case) -> None:
    relays.start()
    damaged(scene, case)


@pytest.mark.parametrize("case", STOPPED, ids=lambda case: case.name)
def test_relay_stopped(scene: Scene, relays: Relays, case: Case) -> None:
    relays.stop()
    damaged(scene, case)


def mend(scene: Scene, case: Case, answer: Explained) -> None:
    """Do what explain says, until it has nothing more to say; then all clients are really served."""
    for _ in range(MENDS_MAX):
        if answer.verdict == "answers":
            break
        scene.mend(answer)
        answer = scene.explain(case.port)
    assert check(scene, replace(case, hits="", other_codes={})).verdict == "answers"


def damaged(scene: Scene, case: Case) -> None:
    """Make the damage, compare, undo it."""
    try:
        if case.before:
            case.before(scene)
        if case.damage:
            scene.shell(case.node, case.damage)
        answer = check(scene, case)
        assert answer.verdict == (case.verdict or ("fails" if case.hits else "answers"))
        if case.mended:
            mend(scene, case, answer)
    finally:
        if case.undo:
            scene.shell(case.node, case.undo, careful=not case.mended)  # what is mended may need no undoing
        if case.after:
            case.after(scene)
        if case.restore:
            scene.restore()
