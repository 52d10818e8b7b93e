"""What is measured: rounds in turns, many at once, growth, VERSION. Each returns the sides with what their calls took."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence

from hosts import Call, Running, Spent, patience
from sides import Container, Side, Walk, comparable

STARTS = 3  # of VERSION and of a bare interpreter, in each round
BURST_S = 600


def turns(sides: Sequence[Side], number: int) -> list[Side]:
    """Each round begins with another one."""
    turn = number % len(sides)
    return [*sides[turn:], *sides[:turn]]


def compare(sides: Sequence[Side]) -> None:
    """One round each, which also fills all caches. SystemExit when results differ."""
    found = {side.name: comparable(side.round(Container("first"))) for side in sides}
    if any(result != found[sides[-1].name] for result in found.values()):
        lines = "\n".join(f"{name}: {result}" for name, result in found.items())
        raise SystemExit(f"results differ, nothing was timed:\n{lines}")
    for side in sides:
        side.times = {}


def rounds(sides: Sequence[Side], count: int) -> None:
    """ADD and DEL of the list for one new container after the other."""
    for number in range(count):
        for side in turns(sides, number):
            side.round(Container(f"c{number}"))


def starts(sides: Sequence[Side], interpreter: str, count: int) -> list[Spent]:
    """VERSION of each side; returns what the bare interpreter took in the same turns."""
    bare = Call(interpreter, {"PATH": os.environ["PATH"]}, b"", "", ("-I", "-S", "-c", "pass"))
    found = []
    for number in range(count * STARTS):
        for side in turns(sides, number):
            side.version()
        found.append(sides[0].host.call(bare)[0])
    return found


def bursts(sides: Sequence[Side], size: int, count: int) -> None:
    """`size` ADDs at once, then as many DELs; "ADDs" and "DELs" are from the first start to the last end."""
    for number in range(count):
        for side in turns(sides, number):
            group = [Container(f"b{place}", 8080 + 2 * place) for place in range(size)]
            side.host.containers("add", [one.name for one in group])
            results = at_once(side, "ADD", group, [None] * size)
            at_once(side, "DEL", group, results)
            side.host.containers("delete", [one.name for one in group])


def at_once(
    side: Side, verb: str, group: Sequence[Container], results: Sequence[object], most: int | None = None
) -> list[object]:
    """ADD or DEL of the list for all of them, at most `most` at a time; noted as one call, `verb` with an s."""
    walks = [side.walk(verb, one, result) for one, result in zip(group, results, strict=True)]
    found: list[object] = [None] * len(walks)
    waiting = list(range(len(walks)))
    active: dict[int, tuple[int, Running]] = {}
    cpu = 0.0
    with patience(f"{side.name}: {len(group)} times {verb}", BURST_S):
        begun = time.perf_counter()
        while waiting or active:
            while waiting and (most is None or len(active) < most):
                place = waiting.pop(0)
                advance(side, walks, place, None, active, found)
            pid, status, usage = os.wait4(-1, 0)
            if pid in active:  # not an orphan that came to this process
                place, running = active.pop(pid)
                spent, answer = running.ended(status, usage)
                cpu += spent.cpu_ms
                advance(side, walks, place, answer, active, found)
        wall = (time.perf_counter() - begun) * 1000
        late = side.service.late_ms() if side.service else 0.0
        side.note(f"{verb}s", Spent(wall, cpu + late))
    return found


def advance(
    side: Side,
    walks: Sequence[Walk],
    place: int,
    answer: bytes | None,
    active: dict[int, tuple[int, Running]],
    found: list[object],
) -> None:
    """Start the next call of a walk, or note its result."""
    try:
        call = next(walks[place]) if answer is None else walks[place].send(answer)
    except StopIteration as end:
        found[place] = end.value
    else:
        running = side.host.start(call)
        active[running.pid] = (place, running)


def fill(side: Side, ports: int, count: int) -> Container:
    """Connect as many containers with as many ports each; returns the next one."""
    group = [Container(f"g{place}", 2000 + 2 * ports * place, ports) for place in range(count + 1)]
    side.host.containers("add", [one.name for one in group])
    at_once(side, "ADD", group[:-1], [None] * count, most=os.cpu_count())
    return group[-1]


def growth(make: Callable[[], list[Side]], sizes: tuple[int, int], ports: int, count: int) -> dict[int, list[Side]]:
    """One attachment more, on hosts that have a few and on hosts that have many, in turns."""
    hosts = {size: make() for size in sizes}
    next_one = {id(side): fill(side, ports, size) for size, sides in hosts.items() for side in sides}
    together = [side for sides in hosts.values() for side in sides]
    for side in together:
        side.times = {}
    for number in range(count):
        for side in turns(together, number):
            container = next_one[id(side)]
            side.run("DEL", container, side.run("ADD", container))
    return hosts
