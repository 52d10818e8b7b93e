"""Which target comes next: shares, stickiness, and what is dead; by value and for all sequences of events."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from portfwd.mapping import Place, Target
from portfwd.relay.balance import Balancer

A, B, C = (Target(f"192.0.2.{number}", 80) for number in (1, 2, 3))
TURNS, SOURCE = "round-robin", "source"
DEAD_S = 10.0

targets_of_a_mapping = st.lists(
    st.builds(
        Target,
        st.sampled_from(["192.0.2.1", "192.0.2.2", "2001:db8::1", "127.0.0.1"]),
        st.integers(1, 3),
        st.sampled_from([Place(), Place(pid=1), Place(container="web")]),
    ),
    min_size=1,
    max_size=8,
)
several_targets = targets_of_a_mapping.filter(lambda targets: len(set(targets)) > 1)
clients = st.ip_addresses().map(str)
ways = st.sampled_from([TURNS, SOURCE])
events = st.lists(st.tuples(st.sampled_from(["order", "failed", "worked"]), st.integers(0, 7), st.floats(0, 20)))


def first(balancer: Balancer, now: float, client: str = "198.51.100.7") -> Target:
    return balancer.order(client, now)[0]


def lived_through(targets: list[Target], how: str, happened: list[tuple[str, int, float]]) -> tuple[Balancer, float]:
    """A balancer with a past, and the time it is."""
    balancer, now = Balancer(targets, how, dead_s=DEAD_S), 100.0
    for what, number, passed in happened:
        now += passed
        target = targets[number % len(targets)]
        if what == "order":
            balancer.order(f"192.0.2.{number}", now)
        elif what == "failed":
            balancer.failed(target, now)
        else:
            balancer.worked(target)
    return balancer, now


def test_targets_take_turns() -> None:
    balancer = Balancer([A, B, C], TURNS)
    assert [balancer.order("198.51.100.7", 0.0) for _ in range(4)] == [[A, B, C], [B, C, A], [C, A, B], [A, B, C]]


def test_a_target_named_twice_is_one_and_starves_nobody() -> None:
    balancer = Balancer([A, A, B], TURNS)
    assert [balancer.order("198.51.100.7", 0.0) for _ in range(3)] == [[A, B], [B, A], [A, B]]


def test_one_that_is_dead_is_tried_last_and_its_neighbour_gets_no_more_than_others() -> None:
    balancer = Balancer([A, B, C], TURNS, dead_s=DEAD_S)
    balancer.failed(A, 0.0)
    assert balancer.dead(9.9) == [A]
    assert [balancer.order("198.51.100.7", 9.9) for _ in range(4)] == [[B, C, A], [C, B, A], [B, C, A], [C, B, A]]


def test_after_its_time_one_connection_tries_it_and_others_wait_for_the_outcome() -> None:
    balancer = Balancer([A, B], TURNS, dead_s=DEAD_S)
    balancer.failed(A, 0.0)
    assert [first(balancer, 10.0) for _ in range(4)] == [A, B, B, B]
    assert first(balancer, 20.0) == A, "nobody told what came of the first"
    balancer.worked(A)
    assert balancer.dead(20.0) == []
    assert Counter(first(balancer, 20.0) for _ in range(4)) == {A: 2, B: 2}


def test_one_that_fails_again_stays_out() -> None:
    balancer = Balancer([A, B], TURNS, dead_s=DEAD_S)
    balancer.failed(A, 0.0)
    assert first(balancer, 10.0) == A
    balancer.failed(A, 15.0)
    assert {first(balancer, now) for now in (15.0, 20.0, 24.9)} == {B}
    assert first(balancer, 25.0) == A


def test_when_all_are_dead_all_are_tried_by_turns() -> None:
    balancer = Balancer([A, B], TURNS, dead_s=DEAD_S)
    balancer.failed(A, 0.0)
    balancer.failed(B, 0.0)
    assert [balancer.order("198.51.100.7", 1.0) for _ in range(2)] == [[A, B], [B, A]]
    assert balancer.dead(1.0) == [A, B]


def test_a_stranger_is_nobodys_target() -> None:
    balancer = Balancer([A, B], TURNS)
    balancer.failed(C, 0.0)
    balancer.worked(C)
    assert balancer.dead(1.0) == []
    assert set(balancer.order("198.51.100.7", 1.0)) == {A, B}


def test_clients_are_spread_over_the_targets_by_their_address() -> None:
    balancer = Balancer([A, B, C], SOURCE)
    shares = Counter(first(balancer, 0.0, f"198.51.{high}.{low}") for high in range(4) for low in range(250))
    assert min(shares.values()) > 280, "a third of 1000, and what chance takes: more than three standard deviations"


def test_the_place_tells_loopback_targets_apart() -> None:
    inside = [Target("127.0.0.1", 80, Place(container=name)) for name in ("web1", "web2", "web3")]
    balancer = Balancer(inside, SOURCE)
    assert {first(balancer, 0.0, f"198.51.100.{number}") for number in range(50)} == set(inside)


@given(targets_of_a_mapping, ways, events, clients)
def test_an_order_has_each_target_once_with_the_dead_at_its_end(
    targets: list[Target], how: str, happened: list[tuple[str, int, float]], client: str
) -> None:
    balancer, now = lived_through(targets, how, happened)
    dead = set(balancer.dead(now))
    order = balancer.order(client, now)
    assert Counter(order) == Counter(set(targets))
    assert set(order[len(order) - len(dead) :]) == dead


@given(targets_of_a_mapping, events, st.integers(1, 5))
def test_every_live_target_gets_its_share(
    targets: list[Target], happened: list[tuple[str, int, float]], rounds: int
) -> None:
    balancer, now = lived_through(targets, TURNS, happened)
    later = now + DEAD_S
    for target in set(targets) - set(balancer.dead(now)):
        balancer.worked(target)  # none that waits for its try
    sharing = set(targets) - set(balancer.dead(now)) or set(targets)
    shares = Counter(first(balancer, now) for _ in range(rounds * len(sharing)))
    assert shares == dict.fromkeys(sharing, rounds)
    assert balancer.dead(later) == []


@given(several_targets, ways, events)
def test_what_is_dead_comes_back(targets: list[Target], how: str, happened: list[tuple[str, int, float]]) -> None:
    balancer, now = lived_through(targets, how, happened)
    balancer.failed(targets[0], now)
    assert targets[0] in balancer.dead(now + DEAD_S - 0.1)
    later = now + DEAD_S
    tried = {first(balancer, later, f"198.51.100.{number}") for number in range(256)}
    assert targets[0] in tried
    balancer.worked(targets[0])
    assert targets[0] not in balancer.dead(later)


@given(several_targets, st.lists(clients, min_size=1))
def test_a_target_that_leaves_moves_its_own_clients_only(targets: list[Target], those: list[str]) -> None:
    before = Balancer(targets, SOURCE)
    gone = targets[0]
    after = Balancer([target for target in targets if target != gone], SOURCE)
    for client in those:
        order = before.order(client, 0.0)
        assert after.order(client, 0.0) == [target for target in order if target != gone]
        assert before.order(client, 1.0) == order


@given(several_targets, clients)
def test_a_dead_target_gets_its_clients_back(targets: list[Target], client: str) -> None:
    balancer = Balancer(targets, SOURCE, dead_s=DEAD_S)
    order = balancer.order(client, 0.0)
    balancer.failed(order[0], 0.0)
    assert balancer.order(client, 1.0) == [*order[1:], order[0]]
    assert balancer.order(client, DEAD_S) == order
    balancer.worked(order[0])
    assert balancer.order(client, DEAD_S) == order


@given(several_targets, clients)
def test_the_order_in_which_targets_were_named_does_not_matter_to_clients(targets: list[Target], client: str) -> None:
    one, other = Balancer(targets, SOURCE), Balancer(list(reversed(targets)), SOURCE)
    assert one.order(client, 0.0) == other.order(client, 0.0)
