"""One attachment of one plugin, made to go wrong at every point: what the tests of single plugins have in common."""

from __future__ import annotations

import signal
from collections.abc import Callable

from runtime import Outcome
from snapshot import difference

from tests.faults.conftest import is_kept

KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)  # of the process itself; as nsenter tells it

Point = tuple[int, str]  # number, what happens there


class Trial:
    """The attachment. A kind of plugin says how it is run, what is compared, and whether and what stays after its DEL."""

    leaves_something = False

    def go(self, verb: str, fault: str = "", **keys: object) -> Outcome:
        """Run it; `keys` go into its configuration."""
        raise NotImplementedError

    def state(self) -> dict[str, object]:
        """Everything that it may change."""
        raise NotImplementedError

    def records(self) -> list[str]:
        """The paths of its records."""
        raise NotImplementedError

    def reset(self) -> None:
        """Put back what stays by design after an ADD that succeeded and its DEL."""

    def good(self, verb: str, fault: str = "", **keys: object) -> Outcome:
        outcome = self.go(verb, fault, **keys)
        assert outcome.status == 0, f"{verb}: {outcome.stdout}{outcome.stderr}"
        return outcome

    def points(self, verb: str, step: str) -> list[Point]:
        """Where the verb can go wrong, found by counting; not the first time, when folders are made that stay."""
        for each in ("ADD", "DEL"):
            self.good(each)
        self.reset()
        outcomes = {each: self.good(each, f"{step}:0:count") for each in ("ADD", "DEL")}
        self.reset()
        lines = [line for line in outcomes[verb].stderr.splitlines() if line.startswith(f"{step} ")]
        assert lines
        return list(enumerate(lines, 1))

    @property
    def has_finished(self) -> bool:
        """Whether an ADD has succeeded: it may be killed thereafter, too."""
        return any(path.endswith(".json") for path in self.records())

    @property
    def is_recorded(self) -> bool:
        """Half of a first record is none."""
        return any(not path.endswith(".tmp") for path in self.records())


def host_of(state: dict[str, object]) -> dict[str, object]:
    """A snapshot of the host without what is_kept(), nor locks: that of one killed early stays until the next call."""
    trees = state["files"]
    assert isinstance(trees, dict)
    for top, entries in trees.items():
        passing = {path for path, entry in entries.items() if "/lock/" in path or is_kept(path, entry)}
        trees[top] = {path: entry for path, entry in entries.items() if path not in passing}
    return state


# What follows a kill


def delete(trial: Trial) -> None:
    trial.good("DEL")


def collect_garbage(trial: Trial) -> None:
    """Without a record there is nothing yet but that, half-written, or its lock. GC also takes a subnet's unused chains."""
    if not trial.is_recorded:
        trial.good("DEL")
    trial.good("GC", "", **{"cni.dev/valid-attachments": []})


def add_again(trial: Trial) -> None:
    if not trial.has_finished:
        trial.good("ADD")
    trial.good("DEL")
    trial.reset()


RECOVERIES: dict[str, Callable[[Trial], None]] = {"GC": collect_garbage, "ADD and DEL": add_again}


# The trials


def fail_add(trial: Trial, step: str, how: str) -> None:
    """An ADD that fails anywhere leaves nothing, at the latest after the DEL that runtimes send.

    At once, if an operation failed: of single calls that fail some belong to taking back.
    """
    points = trial.points("ADD", step)
    before = trial.state()
    for number, point in points:
        outcome = trial.go("ADD", f"{step}:{number}:{how}")
        if outcome.status == 0 or step != "apply":
            trial.good("DEL")
        if outcome.status == 0:  # it was no matter
            trial.reset()
        changed = difference(before, trial.state())
        assert not changed, f"{point}\n{changed}"


def kill_add(trial: Trial, recover: Callable[[Trial], None], start: int = 0, step: int = 1) -> None:
    """An ADD that is killed anywhere leaves nothing that `recover` does not remove.

    Before each change is everywhere: between two of them it makes no difference. `start` and `step` choose among the points.
    """
    points = trial.points("ADD", "change")
    recover(trial)
    before = trial.state()
    for number, point in points[start::step]:
        outcome = trial.go("ADD", f"change:{number}:kill")
        assert outcome.status in KILLED, f"{point}: {outcome}"
        finished = trial.leaves_something and trial.has_finished
        recover(trial)
        if finished:
            trial.reset()
        changed = difference(before, trial.state())
        assert not changed, f"{point}\n{changed}"


def spoil_del(trial: Trial, how: str, start: int = 0, step: int = 1) -> None:
    """A DEL that is killed or fails anywhere can be done again. `start` and `step` choose among the points."""
    points = trial.points("DEL", "change")
    before = trial.state()
    for number, point in points[start::step]:
        trial.good("ADD")
        trial.go("DEL", f"change:{number}:{how}")
        trial.good("DEL")
        trial.reset()
        changed = difference(before, trial.state())
        assert not changed, f"{point}\n{changed}"
