"""Run a plugin's launcher and tell by part where its time went. Run by bench/parts.py, with the launcher's interpreter:

    python3 -IS stopwatch.py LAUNCHER

BENCH_BEGUN says when the caller started it, in nanoseconds of the monotonic clock. Into the file BENCH_PARTS it writes an object
of parts, with wall and processor time in milliseconds, and "end", when the clock stopped. A part is the time in functions of its
modules, without what they call of other parts. Functions that no part claims belong to whoever calls them. It imports nothing
that a call might not have imported.
"""

import builtins
import posix
import sys
import time
from _json import encode_basestring_ascii as quoted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

STARTED = (time.monotonic_ns(), time.process_time_ns())
PARTS = {  # the longest prefix of a module's name counts
    "cni_py": "the plan, and the rest",
    "cni_py.attachment.locks": "records and locks",
    "cni_py.attachment.records": "records and locks",
    "cni_py.files": "records and locks",
    "cni_py.ipam": "addresses' files",
    "cni_py.iptables": "what iptables has",
    "cni_py.kernel.netlink": "",
    "cni_py.kernel.netns": "namespaces",
    "cni_py.kernel.nf_tables": "nftables",
    "cni_py.kernel.rtnl": "links, addresses, routes",
    "cni_py.kernel.inet": "links, addresses, routes",
    "cni_py.kernel.spawn": "programs",
    "cni_py.kernel.xtables": "what iptables has",
    "cni_py.nftables": "nftables",
    "cni_py.protocol": "configuration and result",
}
IMPORTS = "imports"


class Watch:
    """The time of each part, and the part that has the clock."""

    def __init__(self) -> None:
        self.spent: dict[str, list[int]] = {
            "interpreter": [STARTED[0] - int(posix.environ[b"BENCH_BEGUN"]), STARTED[1]]
        }
        self.part = PARTS["cni_py"]
        self.since = (time.monotonic_ns(), time.process_time_ns())

    def turn(self, part: str) -> str:
        """The clock is `part`'s from now on; whose it was."""
        now = (time.monotonic_ns(), time.process_time_ns())
        mine = self.spent.setdefault(self.part, [0, 0])
        mine[0] += now[0] - self.since[0]
        mine[1] += now[1] - self.since[1]
        before, self.part, self.since = self.part, part, now
        return before

    def wrapped(self, function: "Callable[..., object]", part: str) -> "Callable[..., object]":
        """A function whose time is the part's."""

        def inside(*args: object, **named: object) -> object:
            if self.part == part:
                return function(*args, **named)
            before = self.turn(part)
            try:
                return function(*args, **named)
            finally:
                self.turn(before)

        return inside

    def wrap(self, module: "ModuleType") -> None:
        """All functions and methods of a module that has just been loaded."""
        part = next((PARTS[name] for name in prefixes(module.__name__) if name in PARTS), "")
        if not part or module.__name__ == "cni_py.run":
            return
        for holder in [module, *(one for one in vars(module).values() if isinstance(one, type))]:
            if holder is not module and holder.__module__ != module.__name__:
                continue
            for name, value in list(vars(holder).items()):
                if isinstance(value, FUNCTION) and value.__module__ == module.__name__:
                    setattr(holder, name, self.wrapped(value, part))

    def report(self) -> None:
        """Write what was found."""
        self.turn("")
        parts = ", ".join(f"{quoted(part)}: [{wall / 1e6}, {cpu / 1e6}]" for part, (wall, cpu) in self.spent.items())
        fd = posix.open(posix.environ[b"BENCH_PARTS"], posix.O_WRONLY | posix.O_CREAT)
        posix.write(fd, f'{{"end": {time.monotonic_ns()}, "parts": {{{parts}}}}}\n'.encode())


FUNCTION = type(Watch.turn)


def prefixes(name: str) -> list[str]:
    """The name and those of the packages around it, the innermost first."""
    words = name.split(".")
    return [".".join(words[:count]) for count in range(len(words), 0, -1)]


def is_loaded(module: "ModuleType") -> bool:
    """Not while its body is still running, which may be because it is what imports."""
    return not getattr(getattr(module, "__spec__", None), "_initializing", False)


def main(launcher: str) -> None:
    """Run it as the kernel would."""
    watch = Watch()
    load, leave, seen = builtins.__import__, posix._exit, set(sys.modules)

    def loading(*args: object, **named: object) -> "ModuleType":
        before = watch.turn(IMPORTS)
        try:
            return load(*args, **named)  # type: ignore[arg-type]
        finally:
            watch.turn("")  # what the stopwatch does itself is nobody's
            for name in sys.modules.keys() - seen:
                if is_loaded(sys.modules[name]):
                    seen.add(name)
                    watch.wrap(sys.modules[name])
            watch.turn(before)

    def leaving(status: int) -> None:
        watch.report()
        leave(status)

    builtins.__import__, posix._exit = loading, leaving  # type: ignore[assignment]
    sys.argv = [launcher]
    with open(launcher) as file:
        text = file.read()
    exec(compile(text, launcher, "exec"), {"__name__": "__main__"})


if __name__ == "__main__":
    main(sys.argv[1])
