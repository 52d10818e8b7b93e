"""What a plugin is given: one call for one attachment.

A plugin reads `call.conf`, looks at `call.kernel`, computes operations and hands them to `call.apply()`. Nothing else of it acts.
"""

import sys

from cni_py import files
from cni_py.addr import ip_text
from cni_py.attachment import engine, naming, records
from cni_py.attachment.context import Kernel
from cni_py.attachment.naming import Attachment
from cni_py.errors import CniError, os_error, warn
from cni_py.kernel import netns as namespaces

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType

    from cni_py.attachment.engine import Executor, Op
    from cni_py.attachment.records import Record
    from cni_py.protocol.netconf import NetConf
    from cni_py.protocol.result import Result

OWNERSHIP = "cni_py.ownership"
LEFTOVERS = "cni_py.ports.leftovers"


def above(module: str) -> "ModuleType":
    """A module of a floor above, which few calls need: it is named here, and not imported, as no floor knows those above it."""
    __import__(module)
    return sys.modules[module]


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
        "may_be_hosts",
        "netns",
        "path",
        "plugin",
        "record",
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
        self.record: Record | None = None  # DEL: the one whose operations were undone
        self.may_be_hosts = False  # DEL: whether the container's namespace can be the one we run in
        self.kernel = Kernel(self.key, netns, self.owns if verb == "DEL" else None)
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
            self._undo_former()
            return
        self.record = record
        if record.damage:
            warn(f"the attachment record cannot be read, so DEL looks for what is marked: {record.damage}")
        failures = engine.undo_record(record, self.kernel)
        if failures:
            raise CniError(f"DEL of {self.key.label} is incomplete", "; ".join(failures))

    def _undo_former(self) -> None:
        """DEL without a record: undo what this plugin made for the interface while the network had another name. CniError.

        What is left would be undone by a GC: at the cost of the next attachment, which may have the address.
        """
        if not self.kernel.has_container:
            return
        former: Attachment | None = above(OWNERSHIP).former(self.kernel, self.ifname)
        record = records.load(former, self.plugin) if former is not None else None
        if former is not None and record is not None:
            kernel = Kernel(former, self.netns)
            try:
                failures = engine.undo_record(record, kernel)
            finally:
                kernel.leave()
            if failures:
                raise CniError(f"DEL of {self.key.label}, once {former.label}, is incomplete", "; ".join(failures))

    @property
    def is_recorded(self) -> bool:
        """DEL: whether a record told all that there was to undo."""
        return self.record is not None and engine.is_whole(self.record)

    def owns(self, kernel: Kernel) -> bool:
        """DEL: whether the namespace at CNI_NETNS is still the attachment's; see Kernel.is_own.

        The records know it by its cookie. Without one the interface in it tells, see ownership.py.
        """
        if namespaces.same_namespace(kernel.container_fd, kernel.host_fd) and not self.may_be_hosts:
            return False
        for record in [self.record] if self.record is not None else records.of_attachment(self.key):
            known = record.is_of(kernel)
            if known is not None:
                return known
        owned: bool = above(OWNERSHIP).is_own(self, kernel)
        return owned

    @property
    def valid_attachments(self) -> list[Attachment] | None:
        """GC: the attachments of this network that the runtime keeps; None (unlike an empty list) when it names none."""
        listed = self.conf.valid_attachments
        return None if listed is None else [Attachment(self.conf.name, *each) for each in listed]

    def stale_marks(self) -> "Callable[[str], bool]":
        """GC: a test of an alias or comment: whether it names an attachment of this network that the runtime does not keep.

        Without a list from the runtime nothing is stale.
        """
        valid, prefix = self.valid_attachments, f"{self.conf.name}/"
        hexes = {key.hex for key in valid or ()}

        def is_stale(mark: str) -> bool:
            hexed, _, label = mark.partition(" ")
            return valid is not None and label.startswith(prefix) and hexed not in hexes

        return is_stale

    def hand_out(self, addresses: "Sequence[bytes]") -> None:
        """ADD: take away published ports that lead to these addresses, which are this attachment's from now on.

        Those of an attachment that still has its address stay. CniError when something cannot be taken away.
        """
        if not self.dry_run and any(files.may_be_published(ip_text(ip)) for ip in addresses):
            above(LEFTOVERS).of_addresses(self, addresses)

    def withdraw_ports(self) -> None:
        """DEL: take away what the container's interface still publishes, under whatever name of the network. CniError.

        With it what the Go plugins made, whose rules name the container alone.
        """
        names = [naming.interface_name(key) for key in (self.key, Attachment("", self.container_id, ""))]
        if any(map(files.may_be_published, names)):
            leftovers = above(LEFTOVERS)
            self.finish_delete(self.run_all(leftovers.of_interface, leftovers.of_go))

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
        call.record = self.record
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
    """GC: see garbage.collect()."""
    from cni_py.attachment.gc import collect

    return collect(call)
