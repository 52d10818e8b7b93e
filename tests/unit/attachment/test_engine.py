"""The engine: order, roll-back, records; with operations that act on a list instead of the kernel."""

import importlib
from pathlib import Path

import pytest

import cni_py
from cni_py import files
from cni_py.attachment import engine, records
from cni_py.attachment.engine import Executor, Op, Planner, op_from_json
from cni_py.attachment.naming import Attachment
from cni_py.errors import CniError
from cni_py.interface.common import AddAddress
from cni_py.nftables.masquerade import Masquerade

STATE: list[str] = []
BROKEN: set[str] = set()


class FakeKernel:
    """What Executor asks of a Kernel."""

    netns_path = "/run/netns/c1"
    container_cookie = 7
    host_cookie = 1


class Put(Op):
    """Puts its name on the list; broken names fail."""

    name: str
    owned = True
    line = "put {name}"

    def apply(self, kernel: object) -> bool:
        if self.name in BROKEN:
            raise CniError(f"{self.name} is broken")
        if self.name in STATE:
            return False
        STATE.append(self.name)
        return True

    def undo(self, kernel: object) -> None:
        if f"undo {self.name}" in BROKEN:
            raise OSError(16, "Device or resource busy")
        if self.name in STATE:
            STATE.remove(self.name)

    def check(self, kernel: object) -> str | None:
        return None if self.name in STATE else f"{self.name} is missing"


class Share(Put):
    """The same, shared: never undone on its own."""

    owned = False


class Mixed(Op):
    """Every kind of parameter."""

    text: str
    number: int
    flag: bool
    data: bytes
    line = "{text} {number} {flag} {data}"


@pytest.fixture(autouse=True)
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "run_dir", lambda: str(tmp_path / "cni-py"))
    STATE.clear()
    BROKEN.clear()


@pytest.fixture
def executor() -> Executor:
    return Executor(FakeKernel())  # type: ignore[arg-type]  # the three attributes are all it reads


KEY = Attachment("net", "c1", "eth0")


def put(*names: str) -> list[Op]:
    return [Put(name=name) for name in names]


def test_a_failure_undoes_what_was_applied_in_reverse_and_leaves_no_record(executor: Executor) -> None:
    BROKEN.add("c")
    executor.begin(KEY, "bridge")
    executor.apply(put("a", "b"))
    with pytest.raises(CniError, match="c is broken"):
        executor.apply(put("c"))
    assert executor.roll_back() == []
    assert STATE == []
    assert records.load(KEY, "bridge") is None
    assert not Path(KEY.folder).exists()


def test_what_was_there_before_is_not_undone(executor: Executor) -> None:
    STATE.append("a")
    executor.begin(KEY, "bridge")
    executor.apply(put("a", "b"))
    executor.roll_back()
    assert STATE == ["a"]


def test_shared_operations_stay_after_a_roll_back_and_are_not_recorded(executor: Executor) -> None:
    executor.begin(KEY, "bridge")
    executor.apply([Share(name="bridge"), Put(name="veth")])
    record = records.load(KEY, "bridge")
    assert record is not None
    assert [op["name"] for op in record.ops if isinstance(op, dict)] == ["veth"]
    executor.roll_back()
    assert STATE == ["bridge"]


def test_the_record_is_written_before_the_first_effect(executor: Executor) -> None:
    seen: list[bool] = []

    class Look(Op):
        owned = True
        line = "look"

        def apply(self, kernel: object) -> None:
            record = records.load(KEY, "bridge")
            seen.append(record is not None and not record.done and len(record.ops) == 1)

    executor.begin(KEY, "bridge")
    executor.apply([Look()])
    assert seen == [True]


def test_a_finished_add_is_undone_from_its_record_alone(executor: Executor) -> None:
    executor.begin(KEY, "bridge")
    executor.apply(put("a", "b"))
    executor.finish()
    record = records.load(KEY, "bridge")
    assert record is not None
    assert record.done
    assert (record.netns, record.container_cookie, record.host_cookie) == ("/run/netns/c1", 7, 1)
    assert engine.undo_record(record, executor.kernel) == []
    assert STATE == []
    assert records.load(KEY, "bridge") is None


def test_undo_goes_on_after_a_failure_and_keeps_the_record(executor: Executor) -> None:
    executor.begin(KEY, "bridge")
    executor.apply(put("a", "b", "c"))
    executor.finish()
    BROKEN.add("undo b")
    record = records.load(KEY, "bridge")
    assert record is not None
    failures = engine.undo_record(record, executor.kernel)
    assert len(failures) == 1
    assert "put b" in failures[0]
    assert "busy" in failures[0]
    assert STATE == ["b"]
    assert records.load(KEY, "bridge") is not None


def test_a_second_add_that_fails_restores_the_record_of_the_first(executor: Executor) -> None:
    executor.begin(KEY, "portmap")
    executor.apply(put("a"))
    executor.finish()
    second = Executor(executor.kernel)
    second.begin(KEY, "portmap")
    second.apply(put("a", "b"))
    second.roll_back()
    record = records.load(KEY, "portmap")
    assert record is not None
    assert record.done
    assert len(record.ops) == 1
    assert STATE == ["a"]


def test_an_add_beside_one_that_stands_never_undoes_what_that_one_made(executor: Executor) -> None:
    executor.begin(KEY, "bridge")
    executor.apply(put("a"))
    executor.finish()
    BROKEN.add("a")  # as when the container has renamed its interface: the pair cannot be made again
    second = Executor(executor.kernel)
    second.begin(KEY, "bridge")
    with pytest.raises(CniError):
        second.apply(put("a"))
    second.roll_back()
    assert STATE == ["a"]


def test_the_undo_of_another_program_runs_after_our_own(executor: Executor) -> None:
    executor.begin(KEY, "bridge")
    executor.undone_by(lambda: STATE.append("ipam DEL with " + ",".join(STATE)))
    executor.apply(put("a"))
    executor.roll_back()
    assert STATE == ["ipam DEL with "]


def test_a_planner_collects_and_touches_nothing() -> None:
    planner = Planner(FakeKernel())  # type: ignore[arg-type]  # as above
    planner.begin(KEY, "bridge")
    planner.apply(put("a"))
    assert planner.plan == put("a")
    assert STATE == []
    assert records.load(KEY, "bridge") is None


def test_operations_survive_their_json() -> None:
    op = Mixed(text="x", number=3, flag=True, data=b"\x00\xff")
    assert op_from_json(op.to_json()) == op
    assert op.describe() == "x 3 True 00:ff"


def test_every_operation_that_a_record_may_hold_is_found_again() -> None:
    root = Path(cni_py.__file__).parent
    for path in root.rglob("*.py"):
        if "(Op):" in path.read_text():
            importlib.import_module(".".join(["cni_py", *path.relative_to(root).with_suffix("").parts]))
    owned: dict[str, set[str]] = {}
    for cls in engine.REGISTRY.values():
        if cls.owned and cls.__module__.startswith("cni_py."):
            owned.setdefault(cls.__module__, set()).add(cls.__name__)
    assert owned == {module: set(names) for module, names in engine.HOMES.items()}


@pytest.mark.parametrize(
    "fields",
    [
        None,
        [],
        {},
        {"op": "NoSuch"},
        {"op": "Put"},
        {"op": "Put", "name": 3},
        {"op": "Put", "name": "a\0b"},
        {"op": "Put", "name": "sixteen-bytes-xx"},
        {"op": "Put", "name": "a", "more": 1},
        {"op": "Mixed", "text": "x", "number": True, "flag": True, "data": ""},
        {"op": "Mixed", "text": "x", "number": 1, "flag": True, "data": "zz"},
    ],
)
def test_a_record_that_is_not_ours_is_refused(fields: object) -> None:
    with pytest.raises(ValueError, match=r".+"):
        op_from_json(fields)


def test_wrong_fields_are_caught_by_mypy_and_when_the_operation_is_built() -> None:
    """A comment below that mypy does not need is an error, too (warn_unused_ignores, in tests/test_tools.py's run of it)."""
    with pytest.raises(TypeError, match="takes"):
        AddAddress(ifname="eth0", addres="192.0.2.1/24", dad=False)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="takes"):
        AddAddress(ifname="eth0", dad=False)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="takes"):
        Masquerade(addres="192.0.2.1/24")  # type: ignore[call-arg]  # validate() in place of a constructor
    with pytest.raises(TypeError, match="positional"):
        Put("a")  # type: ignore[call-arg]
    wrong = Put(name=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not str: 3"):
        op_from_json(wrong.to_json())


def test_the_fields_of_the_class_above_are_fields() -> None:
    class PutAway(Put):
        where: str

    op = PutAway(name="a", where="b")
    assert op_from_json(op.to_json()) == op
