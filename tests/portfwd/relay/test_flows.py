"""The table of UDP flows, by value and against a model that is a plain list."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from portfwd.relay.flows import HELD_S, QUESTION_S, TALKS_S, Flow, FlowTable


def filled(table: FlowTable[Flow], *names: str) -> FlowTable[Flow]:
    """Flows used at 0, 1, 2, ...; a name is the owner and a number, as in a1."""
    for now, name in enumerate(names):
        table.add(Flow(name, name[0], float(now)))
    return table


def keys(flows: FlowTable[Flow] | list[Flow]) -> list[object]:
    return [flow.key for flow in flows]


def use(table: FlowTable[Flow], key: str, now: float) -> None:
    flow = table.get(key)
    assert flow is not None
    table.touch(flow, now)


def test_the_least_recently_used_flow_leaves_a_full_table() -> None:
    table = filled(FlowTable(3), "a1", "b1", "c1")
    use(table, "a1", 3.0)
    assert keys(table.add(Flow("d1", "d", 4.0))) == ["b1"]
    assert keys(table) == ["c1", "a1", "d1"]


def test_looking_a_flow_up_does_not_keep_it() -> None:
    table = filled(FlowTable(2), "a1", "b1")
    table.get("a1")
    assert keys(table.add(Flow("c1", "c", 3.0))) == ["a1"]


def test_a_client_at_its_cap_loses_its_own_flow_and_nobody_elses() -> None:
    table = filled(FlowTable(3, limit_per_client=2), "b1", "a1", "a2")
    use(table, "a1", 3.0)
    assert keys(table.add(Flow("a3", "a", 4.0))) == ["a2"]
    assert keys(table) == ["b1", "a1", "a3"]


def test_flows_expire_after_their_idle_time_oldest_first() -> None:
    table = filled(FlowTable(9, idle_s=10.0), "a1", "b1", "c1")
    use(table, "a1", 3.0)
    assert keys(table.expire(10.9)) == []
    assert keys(table.expire(12.0)) == ["b1", "c1"]
    assert keys(table.expire(13.0)) == ["a1"]
    assert len(table) == 0


def test_tighter_bounds_put_out_the_least_recently_used() -> None:
    table = filled(FlowTable(9), "a1", "b1", "a2", "a3", "c1")
    assert keys(table.resize(3, 2, 1.0)) == ["a1", "b1"]
    assert keys(table) == ["a2", "a3", "c1"]


def test_an_empty_table_has_nothing_to_give() -> None:
    table: FlowTable[Flow] = FlowTable(1)
    assert table.expendable(0.0) is None
    assert table.expire(1e9) == []


def test_conversations_are_not_ended_for_questions() -> None:
    table = filled(FlowTable(3), "a1", "b1", "c1")
    for key in ("a1", "b1"):
        flow = table.get(key)
        assert flow is not None
        table.touch(flow, 10.0)
        table.talks(flow, 10.0)
    assert keys(table.add(Flow("d1", "d", 10.0))) == ["c1"]
    for name in ("e1", "f1"):  # many that come once and never again
        assert len(table.add(Flow(name, name[0], 11.0))) == 1
    assert keys(table) == ["a1", "b1", "f1"]


def test_a_table_full_of_conversations_refuses_until_one_is_silent() -> None:
    table = filled(FlowTable(1), "a1")
    flow = table.get("a1")
    assert flow is not None
    table.talks(flow, TALKS_S / 2)  # two questions at once are no conversation
    assert not table.is_full("b", TALKS_S / 2)
    table.touch(flow, TALKS_S)
    table.talks(flow, TALKS_S)
    assert table.is_full("b", TALKS_S + HELD_S - 1)
    assert not table.is_full("b", TALKS_S + HELD_S)


class Model(RuleBasedStateMachine):
    """A list of (key, owner, last used), least recently used first, says what the table must do; `talking` are conversations."""

    now = 0.0

    @initialize(limit=st.integers(1, 6), cap=st.integers(0, 3))
    def start(self, limit: int, cap: int) -> None:
        self.limit, self.cap, self.idle_s = limit, cap, 2 * HELD_S
        self.table: FlowTable[Flow] = FlowTable(limit, cap, self.idle_s)
        self.model: list[tuple[str, str, float]] = []
        self.talking: set[str] = set()
        self.count = 0

    def expendable(self, now: float) -> list[tuple[str, str, float]]:
        questions = [one for one in self.model if one[0] not in self.talking]
        unanswered = [one for one in questions if now - one[2] >= QUESTION_S]
        silent = [one for one in self.model if now - one[2] >= HELD_S]
        return (unanswered or silent or questions)[:1]

    def make_room(self, owner: str, now: float) -> list[str]:
        own = [one for one in self.model if one[1] == owner]
        full = bool(self.cap) and len(own) >= self.cap
        gone = own[:1] if full else []
        if not full and len(self.model) >= self.limit:
            gone = self.expendable(now) or self.model[:1]
        self.model = [one for one in self.model if one not in gone]
        return [one[0] for one in gone]

    @rule(owner=st.sampled_from("abc"), passed=st.integers(0, 8))
    def add(self, owner: str, passed: int) -> None:
        self.now += passed
        self.count += 1
        key = f"{owner}{self.count}"
        full = not (self.cap and sum(one[1] == owner for one in self.model) >= self.cap)
        full = full and len(self.model) >= self.limit and not self.expendable(self.now)
        assert self.table.is_full(owner, self.now) is full
        expected = self.make_room(owner, self.now)
        self.model.append((key, owner, self.now))
        assert keys(self.table.add(Flow(key, owner, self.now))) == expected

    @precondition(lambda self: self.model)
    @rule(data=st.data(), passed=st.integers(0, 4))
    def touch(self, data: st.DataObject, passed: int) -> None:
        self.now += passed
        key, owner, _ = one = data.draw(st.sampled_from(self.model))
        self.model.remove(one)
        self.model.append((key, owner, self.now))
        use(self.table, key, self.now)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def talk(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(self.model))[0]
        flow = self.table.get(key)
        assert flow is not None
        if key not in self.talking:
            self.table.talks(flow, self.now)
            self.talking |= {key} if self.now - flow.begun >= TALKS_S else set()

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.model))
        self.model.remove(one)
        flow = self.table.get(one[0])
        assert flow is not None
        self.table.remove(flow)

    @rule(passed=st.integers(0, 90))
    def expire(self, passed: int) -> None:
        self.now += passed
        expected = [key for key, _, active in self.model if active <= self.now - self.idle_s]
        self.model = [one for one in self.model if one[0] not in expected]
        assert keys(self.table.expire(self.now)) == expected

    @rule(limit=st.integers(1, 6), cap=st.integers(0, 3))
    def resize(self, limit: int, cap: int) -> None:
        self.limit, self.cap = limit, cap
        before, self.model = self.model, []
        expected: list[str] = []
        for one in before:
            expected += self.make_room(one[1], one[2])
            self.model.append(one)
        assert keys(self.table.resize(limit, cap, self.idle_s)) == expected

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "table"):
            assert keys(self.table) == [one[0] for one in self.model]
            assert len(self.table) <= self.limit
            for owner in "abc":
                assert not self.cap or sum(one[1] == owner for one in self.model) <= self.cap


TestTheTableDoesWhatAPlainListDoes = Model.TestCase
