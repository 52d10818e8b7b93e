"""The argument of every function of a plugin: one call for one attachment.

A plugin reads `call.conf`, looks at `call.kernel`, and gives operations to `call.apply()`, which alone changes anything.
"""

import sys

from cni_py import files
from cni_py.addr import ip_text
from cni_py.attachment import naming, records
from cni_py.attachment.context import Kernel
from cni_py.attachment.locks import attachment_lock
from cni_py.attachment.naming import Attachment
from cni_py.errors import CniError, os_error, warn
from cni_py.kernel import netns as namespaces
from cni_py.lean import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType

    from cni_py.attachment.engine import Executor, Op
    from cni_py.attachment.records import Record
    from cni_py.protocol.netconf import NetConf
    from cni_py.protocol.result import Result

# The modules of higher floors that a call uses, by name. ADD and DEL of any plugin must leave no published port that leads to
# the next container, and must not touch another container's namespace; who publishes and whose a namespace is can only be found
# out with the modules of ports and ipam, which need Call themselves. CHECK also looks at what its operations share in nftables.
# An import would be a circle, and would load them in every call, though few need them.
COMPLETENESS = "cni_py.nftables.completeness"  # check()
OWNERSHIP = "cni_py.ownership"  # former(), is_own()
LEFTOVERS = "cni_py.ports.leftovers"  # of_addresses(), of_interface(), of_go()


def above(module: str) -> "ModuleType":
    """One of the modules above, loaded when a call first needs it."""
    __import__(module)
    return sys.modules[module]


class Plugin:
    """A CNI plugin: its type, and a function for each verb.

    `versions`: the versions of the specification that it speaks; empty for all. `examine`, for an IPAM plugin: raise the
    CniError that an ADD with this configuration would raise before its first effect.
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
        "_executor",
        "args",
        "conf",
        "container_id",
        "dead",
        "dry_run",
        "ifname",
        "kernel",
        "key",
        "may_be_hosts",
        "netns",
        "outer",
        "part",
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
        self.record: Record | None = None  # DEL: the record whose operations were undone
        self.may_be_hosts = False  # DEL: whether the container's namespace can be the one we run in
        self.outer: Call | None = None  # of a plugin of a chain's list: the chain's call
        self.part = ""  # the plugin of the list whose operations this call's are
        self.dead: bool | None = None  # ADD: what begin() has returned
        self.kernel = Kernel(self.key, netns, self.owns if verb == "DEL" else None, hurried=verb == "DEL")
        self._executor: Executor | None = None

    @property
    def executor(self) -> "Executor":
        """What applies operations and undoes them. A call that has nothing to do loads none."""
        if self._executor is None:
            from cni_py.attachment import engine

            self._executor = engine.Planner(self.kernel) if self.dry_run else engine.Executor(self.kernel)
        return self._executor

    def finish(self) -> None:
        """ADD has succeeded."""
        if self._executor is not None:
            self._executor.finish()

    def roll_back(self) -> list[str]:
        """ADD has failed: undo what it applied. Returns the failures in words."""
        return self._executor.roll_back() if self._executor is not None else []

    def begin(self) -> bool:
        """ADD: begin the attachment record, which is written before the first effect that is to be undone.

        If an earlier ADD of the attachment was killed, or its namespace is gone, its operations are undone first; the return
        value tells whether there was one. So are those of an ADD for which this plugin was in a chain's list, or of one for
        which it was not: its record is in another file. CniError when something of it cannot be undone.
        """
        if self.outer is not None and self.outer.dead is None:
            self.outer.begin()  # the first plugin of the list that begins
        find = records.load if self.outer is None else records.own
        stale = None if self.dry_run else find(self.key, self.plugin)
        dead = stale is not None and (
            not stale.done or stale.container_cookie != self.kernel.container_cookie or stale.file != self.guard
        )
        if stale is not None and dead:
            failures = self._undo(stale)
            if failures:
                raise CniError(f"cannot undo an earlier ADD of {self.key.label}", "; ".join(failures))
        if self.outer is None:
            self.executor.begin(self.key, self.plugin)
        self.dead = dead or (self.outer is not None and bool(self.outer.dead))
        return self.dead

    @property
    def guard(self) -> str:
        """The plugin whose lock this call holds."""
        return self.plugin if self.outer is None else self.outer.plugin

    def _undo(self, record: "Record") -> list[str]:
        """Undo a record of this plugin; returns the failures in words. One in another file may be that of an ADD under way."""
        from cni_py.attachment import engine

        if record.file == self.guard:
            return engine.undo_record(record, self.kernel)
        with attachment_lock(self.key, record.file):
            current = records.load(self.key, self.plugin)
            return engine.undo_record(current, self.kernel) if current is not None else []

    def is_unfinished(self) -> bool:
        """Whether an earlier ADD of this plugin for this attachment began and was killed, and is not undone yet."""
        if self.outer is not None and self.outer.dead is not None:
            return False  # begin() of a plugin before it in the list has undone it
        record = records.load(self.key, self.plugin)
        return record is not None and not record.done

    def apply(self, plan: "Sequence[Op]") -> None:
        """Apply operations; they are undone if the ADD fails later. A dry run collects them. CniError."""
        self.executor.apply(plan, self.part)

    def undo_recorded(self) -> None:
        """DEL: undo the operations of the record; without a record there is nothing to do. CniError with all failures."""
        record = records.load(self.key, self.plugin)
        if record is None:
            records.remove_halves(self.key, self.plugin)
            self._undo_former()
            return
        self.record = record
        if record.damage:
            warn(f"the attachment record cannot be read, so DEL looks for what is marked: {record.damage}")
        failures = self._undo(record)
        if failures:
            raise CniError(f"DEL of {self.key.label} is incomplete", "; ".join(failures))

    def _undo_former(self) -> None:
        """DEL without a record: undo what this plugin made for the interface while the network had another name. CniError.

        A GC would undo it later: when another attachment may have the address already, and would lose its rules.
        """
        # A record of any plugin shows that the network had its present name when the interface was made: no need to look at it.
        if os.path.exists(self.key.folder) or not self.kernel.has_container:
            return
        former: Attachment | None = above(OWNERSHIP).former(self.kernel, self.ifname)
        record = records.load(former, self.plugin) if former is not None else None
        if former is not None and record is not None:
            from cni_py.attachment import engine

            kernel = Kernel(former, self.netns, hurried=True)
            try:
                failures = engine.undo_record(record, kernel)
            finally:
                kernel.leave()
            if failures:
                raise CniError(f"DEL of {self.key.label} (formerly {former.label}) is incomplete", "; ".join(failures))

    @property
    def is_recorded(self) -> bool:
        """DEL: whether there was a record, and all of it could be read."""
        if self.record is None:
            return False
        from cni_py.attachment import engine

        return engine.is_whole(self.record)

    def owns(self, kernel: Kernel) -> bool:
        """DEL: whether the namespace at CNI_NETNS is still the attachment's (see Kernel.is_own).

        A record knows it by its cookie. Without a record the interface in it has to tell (cni_py/ownership.py).
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
        """ADD: remove the published ports that lead to these addresses, which this attachment has from now on.

        The ports of an attachment that still has its address stay. CniError when a port cannot be removed.
        """
        if not self.dry_run and any(files.may_be_published(ip_text(ip)) for ip in addresses):
            above(LEFTOVERS).of_addresses(self, addresses)

    def withdraw_ports(self) -> None:
        """DEL: remove the ports that the container's interface still publishes, whatever the network is called. CniError.

        Also those of the Go plugins, whose rules name only the container.
        """
        names = [naming.interface_name(key) for key in (self.key, Attachment("", self.container_id, ""))]
        if any(map(files.may_be_published, names)):
            leftovers = above(LEFTOVERS)
            self.finish_delete(self.run_all(leftovers.of_interface, leftovers.of_go))

    def check_plan(self, plan: "Sequence[Op]") -> None:
        """CHECK: CniError with all differences between the kernel and the plan. It names the command that repairs them."""
        differences = [(op, difference) for op in plan if (difference := op.check(self.kernel)) is not None]
        if not differences:
            if any(op.nft_family for op in plan):
                above(COMPLETENESS).check(self.kernel.nft, plan)
            return
        first, *others = [difference for _, difference in differences]
        if differences[0][0].restorable:
            first += " (`cni-py restore` puts it back)"
        elif any(op.restorable for op, _ in differences):
            others.append("`cni-py restore` puts back what the packet filter lost")
        raise CniError(first, "; ".join(others))

    def delegated(self, ipam: str) -> "Call":
        """The same call for the IPAM plugin `ipam` in this process; its operations are applied and recorded with this call's."""
        call = self._shared(ipam, self.conf)
        call.record = self.record
        call.outer, call.part = self.outer, self.part
        return call

    def member(self, plugin: str, conf: "NetConf") -> "Call":
        """The same call for a plugin of this one's list (plugins/chain.py): one record and one roll-back for the whole list."""
        call = self._shared(plugin, conf)
        call.outer, call.part = self, plugin
        return call

    def _shared(self, plugin: str, conf: "NetConf") -> "Call":
        call = Call(
            self.verb,
            plugin,
            conf,
            container_id=self.container_id,
            netns=self.netns,
            ifname=self.ifname,
            args=self.args,
            path=self.path,
            dry_run=self.dry_run,
        )
        call.kernel = self.kernel
        call._executor = self.executor
        call.may_be_hosts = self.may_be_hosts
        return call

    def run_all(self, *steps: "Callable[[Call], object]") -> list[CniError]:
        """Run every step, also after one that fails; returns the failures."""
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
        """End a DEL or GC: raise the first failure, with the others as its details; nothing without failures."""
        if failures:
            first, *others = failures
            details = "; ".join(filter(None, [first.details, *map(str, others)]))
            raise CniError(first.msg, details, first.code) from first


def collect_garbage(call: Call) -> list[CniError]:
    """GC: see gc.collect()."""
    from cni_py.attachment.gc import collect

    return collect(call)
