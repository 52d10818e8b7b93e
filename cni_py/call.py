"""What a plugin is given: one call for one attachment.

A plugin reads `call.conf`, looks at `call.kernel`, computes operations and hands them to `call.apply()`. Nothing else of it acts.
"""

from cni_py import engine, records
from cni_py.errors import CniError, os_error
from cni_py.kernel.context import Kernel
from cni_py.locks import attachment_lock
from cni_py.records import Attachment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cni_py.engine import Executor, Op
    from cni_py.netconf import NetConf
    from cni_py.result import Result


class Plugin:
    """A CNI plugin: its type and one function per verb.

    `versions` are the versions of the specification it speaks. `examine` of an IPAM plugin reads the configuration as ADD
    will, and refuses what ADD would refuse, without any effect.
    """

    __slots__ = ("add", "check", "delete", "examine", "gc", "status", "type", "versions")

    def __init__(
        self,
        type: str,  # noqa: A002  the specification's word
        add: "Callable[[Call], Result]",
        delete: "Callable[[Call], None]",
        check: "Callable[[Call], None]",
        gc: "Callable[[Call], None]",
        status: "Callable[[Call], None]",
        versions: "Sequence[str]" = (),
        examine: "Callable[[Call], object] | None" = None,
    ) -> None:
        self.type = type
        self.add = add
        self.delete = delete
        self.check = check
        self.gc = gc
        self.status = status
        self.versions = versions
        self.examine = examine


class Call:
    """One execution of one plugin."""

    __slots__ = (
        "args",
        "conf",
        "container_id",
        "dry_run",
        "executor",
        "ifname",
        "kernel",
        "key",
        "netns",
        "path",
        "plugin",
        "verb",
    )

    def __init__(  # noqa: PLR0913  the environment of the protocol has this many variables
        self,
        verb: str,
        plugin: str,
        conf: "NetConf",
        *,
        container_id: str = "",
        netns: str = "",
        ifname: str = "",
        args: str = "",
        path: "Sequence[str]" = (),
        dry_run: bool = False,
    ) -> None:
        self.verb = verb
        self.plugin = plugin
        self.conf = conf
        self.container_id = container_id
        self.netns = netns
        self.ifname = ifname
        self.args = args
        self.path = list(path)
        self.dry_run = dry_run
        self.key = Attachment(conf.name, container_id, ifname)
        self.kernel = Kernel(self.key, netns)
        self.executor: Executor = engine.Planner(self.kernel) if dry_run else engine.Executor(self.kernel)

    def begin(self) -> bool:
        """Announce an ADD in the attachment record, before its first effect; clear away what a dead one left.

        Whatever an ADD that was killed left, or one whose namespace is gone, is undone first. True: there was such a one.
        """
        stale = None if self.dry_run else records.load(self.key, self.plugin)
        dead = stale is not None and (not stale.done or stale.container_cookie != self.kernel.container_cookie)
        if stale is not None and dead:
            failures = engine.undo_record(stale, self.kernel)
            if failures:
                raise CniError(f"cannot clear away what an earlier ADD of {self.key.label} left", "; ".join(failures))
        self.executor.begin(self.key, self.plugin)
        return dead

    def is_unfinished(self) -> bool:
        """Whether an ADD of this plugin for this attachment began and never ended."""
        record = records.load(self.key, self.plugin)
        return record is not None and not record.done

    def apply(self, plan: "Sequence[Op]") -> None:
        """Apply operations, undone if the ADD fails later (in a dry run: collect them)."""
        self.executor.apply(plan)

    def undo_recorded(self) -> None:
        """DEL: undo what the record lists; nothing recorded is success. CniError with all that failed."""
        record = records.load(self.key, self.plugin)
        if record is None:
            records.Record(self.key, self.plugin).remove()  # half of one, from a call killed while it wrote its first
            return
        failures = engine.undo_record(record, self.kernel)
        if failures:
            raise CniError(f"DEL of {self.key.label} is incomplete", "; ".join(failures))

    def check_plan(self, plan: "Sequence[Op]") -> None:
        """CHECK: CniError with everything that differs from what `plan` would make, and whether a command puts it back."""
        differences = [(op, difference) for op in plan if (difference := op.check(self.kernel)) is not None]
        if not differences:
            return
        first, *others = [difference for _, difference in differences]
        if type(differences[0][0]).__module__ in engine.RESTORED:
            first += " (`cni-py restore` puts it back)"
        elif any(type(op).__module__ in engine.RESTORED for op, _ in differences):
            others.append("`cni-py restore` puts back what the packet filter lost")
        raise CniError(first, "; ".join(others))

    def delegated(self, ipam: str) -> "Call":
        """The same call for the IPAM plugin `ipam`, in this process; its operations join this call's."""
        call = Call(
            self.verb,
            ipam,
            self.conf,
            container_id=self.container_id,
            netns=self.netns,
            ifname=self.ifname,
            args=self.args,
            path=self.path,
            dry_run=self.dry_run,
        )
        call.kernel = self.kernel
        call.executor = self.executor
        return call

    def run_all(self, *steps: "Callable[[Call], object]") -> list[CniError]:
        """Run every step, whatever the ones before it did; returns what failed."""
        failures = []
        for step in steps:
            try:
                step(self)
            except CniError as error:
                failures.append(error)
            except OSError as error:
                failures.append(os_error(f"{self.verb} of {self.key.label} failed", error))
        return failures

    def finish_delete(self, failures: "Sequence[CniError]") -> None:
        """DEL or GC has done all it could: the first failure is the error, the others are its details."""
        if failures:
            first, *others = failures
            details = "; ".join(filter(None, [first.details, *map(str, others)]))
            raise CniError(first.msg, details, first.code) from first


def collect_garbage(call: Call) -> list[CniError]:
    """GC: undo every recorded attachment of this network, made in this host namespace, that is not among the valid ones.

    Each under its own lock: an ADD that is under way is not garbage.
    """
    listed = call.conf.valid_attachments
    if listed is None:
        return []  # a runtime that lists nothing has not said that nothing is valid
    valid = set(listed)
    failures: list[CniError] = []
    for record in records.all_records(call.plugin):
        key = record.key
        if key.network != call.conf.name or (key.container_id, key.ifname) in valid:
            continue
        if record.host_cookie not in (0, call.kernel.host_cookie):
            continue
        try:
            with attachment_lock(key, call.plugin):
                current = records.load(key, call.plugin)
                left = engine.undo_record(current, Kernel(key, current.netns)) if current is not None else []
                failures += [CniError(f"GC of {key.label} is incomplete", text) for text in left]
        except CniError as error:
            failures.append(error)
    return failures
