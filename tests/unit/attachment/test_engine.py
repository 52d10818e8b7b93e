"""The engine: order, roll-back, records; with operations that act on a list instead of the kernel."""

import importlib
from pathlib import Path

import pytest

import cni_py
from cni_py import files
from cni_py.attachment import engine, records
from cni_py.attachment.engine import Executor, Fields, Op, Planner, op_from_json, split_texts
from cni_py.attachment.naming import Attachment
from cni_py.attachment.records import Record
from cni_py.errors import CniError
from cni_py.interface.common import AddAddress
from cni_py.nftables.masquerade import Masquerade
from cni_py.protocol import gojson

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


class PutAll(Op):
    """The same of several. In the version before `names` was one text."""

    names: list[str]
    owned = True
    line = "put {names}"

    @classmethod
    def translated(cls, fields: dict[str, object]) -> dict[str, object]:
        return split_texts(fields, "names")

    def apply(self, kernel: object) -> None:
        STATE.extend(name for name in self.names if name not in STATE)

    def undo(self, kernel: object) -> None:
        for name in self.names:
            STATE.remove(name)


class Share(Put):
    """The same, shared: never undone on its own."""

    owned = False


class Part(Fields):
    """A part of an operation."""

    port: int
    key: bytes

    def validate(self) -> None:
        if self.port > 9:
            raise ValueError(f"no such port: {self.port}")


class Mixed(Op):
    """Every kind of parameter. `texts` was one text, in the version before."""

    text: str
    number: int
    flag: bool
    data: bytes
    texts: list[str]
    numbers: dict[str, int]
    parts: list[Part]
    line = "{text} {number} {flag} {data} {texts}"

    @classmethod
    def translated(cls, fields: dict[str, object]) -> dict[str, object]:
        return split_texts(fields, "texts")


MIXED = Mixed(
    text="x",
    number=3,
    flag=True,
    data=b"\x00\xff",
    texts=["a", "b"],
    numbers={"c": 1},
    parts=[Part(port=1, key=b"\1"), Part(port=2, key=b"")],
)


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


def test_the_undo_of_another_program_runs_in_its_turn(executor: Executor) -> None:
    executor.begin(KEY, "chain")
    executor.apply(put("b"), "bridge")
    executor.undone_by(lambda: STATE.append("ipam DEL with " + ",".join(STATE)))
    executor.apply(put("a"), "portmap")
    executor.roll_back()
    assert STATE == ["ipam DEL with b"]


def test_operations_of_a_chain_are_recorded_with_their_plugin(executor: Executor) -> None:
    executor.begin(KEY, "chain")
    for name, plugin in (("a", "bridge"), ("b", "portmap")):
        executor.apply(put(name), plugin)
    executor.finish()
    for plugin in ("bridge", "portmap", "chain"):
        assert [key.label for key in records.keys_of("net", plugin)] == [KEY.label]
    part = records.load(KEY, "bridge")
    assert part is not None
    assert engine.is_whole(part)
    assert engine.undo_record(part, executor.kernel) == []
    assert STATE == ["b"]


def test_a_planner_collects_and_touches_nothing() -> None:
    planner = Planner(FakeKernel())  # type: ignore[arg-type]  # as above
    planner.begin(KEY, "bridge")
    planner.apply(put("a"))
    assert planner.plan == put("a")
    assert STATE == []
    assert records.load(KEY, "bridge") is None


def test_operations_survive_their_json() -> None:
    fields = gojson.decode(gojson.encode(MIXED.to_json(), None).encode())
    assert op_from_json(fields) == MIXED
    assert MIXED.describe() == "x 3 True 00:ff a b"


def test_the_form_of_the_version_before_is_read() -> None:
    fields = {**MIXED.to_json(), "texts": " a  b"}
    assert op_from_json(fields) == MIXED


def test_an_add_beside_one_that_the_version_before_made_knows_what_that_one_made(executor: Executor) -> None:
    executor.begin(KEY, "bridge")
    executor.apply([PutAll(names=["a", "b"])])
    executor.finish()
    path = Path(KEY.folder, "bridge.json")
    path.write_text(path.read_text().replace('["a","b"]', '"a b"'))
    second = Executor(executor.kernel)
    second.begin(KEY, "bridge")
    second.apply([PutAll(names=["a", "b"])])
    assert not second.applied
    second.roll_back()
    assert STATE == ["a", "b"]
    assert '"a b"' in path.read_text()


def test_operations_of_a_class_are_found_in_a_record() -> None:
    record = Record(KEY, "bridge")
    record.ops = [{"op": "Put", "name": "a"}, 3, {"op": "Put", "name": 3}, {"op": "Share", "name": "b"}]
    assert list(engine.listed(record, Put)) == put("a")
    assert list(engine.listed(None, Put)) == []


def test_every_operation_that_a_record_may_hold_is_found_again() -> None:
    root = Path(cni_py.__file__).parent
    for path in root.rglob("*.py"):
        if "Op):" in path.read_text() or "(AddChild):" in path.read_text() or "(AddOnMaster):" in path.read_text():
            importlib.import_module(".".join(["cni_py", *path.relative_to(root).with_suffix("").parts]))
    owned: dict[str, set[str]] = {}
    for cls in engine.REGISTRY.values():
        if (cls.owned or cls.restorable) and cls.__module__.startswith("cni_py."):
            owned.setdefault(cls.__module__, set()).add(cls.__name__)
    assert owned == {module: set(names) for module, names in engine.HOMES.items()}
    filters = [
        cls for cls in engine.REGISTRY.values() if cls.__module__.startswith(("cni_py.nftables", "cni_py.iptables"))
    ]
    assert [cls for cls in filters if not cls.restorable] == []


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
    ],
)
def test_a_record_that_is_not_ours_is_refused(fields: object) -> None:
    with pytest.raises(ValueError, match=r".+"):
        op_from_json(fields)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"number": True}, "number is not of type int: True"),
        ({"flag": 1}, "flag is not of type bool: 1"),
        ({"data": "zz"}, "data: non-hexadecimal"),
        ({"data": 3}, "data is not of type bytes: 3"),
        ({"texts": 3}, "texts is not of type list: 3"),
        ({"texts": ["a", 3]}, r"texts\[1\] is not of type str: 3"),
        ({"numbers": {"c": "1"}}, "numbers.c is not of type int: '1'"),
        ({"numbers": []}, r"numbers is not of type dict: \[\]"),
        ({"parts": [{"port": 1}]}, r"parts\[0\]: Part has the fields \['key', 'port'\], not \['port'\]"),
        ({"parts": [{"port": 10, "key": ""}]}, r"parts\[0\]: no such port: 10"),
        ({"parts": ["port"]}, r"parts\[0\] is not of type Part: 'port'"),
        ({"more": 1}, "Mixed has the fields"),
    ],
)
def test_the_error_names_the_field_that_is_damaged(wrong: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        op_from_json({**MIXED.to_json(), **wrong})


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
    with pytest.raises(ValueError, match="name is not of type str: 3"):
        op_from_json(wrong.to_json())


def test_the_fields_of_the_class_above_are_fields() -> None:
    class PutAway(Put):
        where: str

    op = PutAway(name="a", where="b")
    assert op_from_json(op.to_json()) == op
