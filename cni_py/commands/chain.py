"""A network's plugins executed one after the other, as libcni does it (libcni/api.go, pkg/invoke)."""

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cni_py import run, version
from cni_py.attachment import delegate
from cni_py.attachment.call import Call
from cni_py.attachment.engine import Op, Planner
from cni_py.attachment.naming import Attachment
from cni_py.commands import namespaces
from cni_py.commands.report import LACKING, Failure, complain
from cni_py.errors import CniError, IncompatibleCniVersion, os_error
from cni_py.kernel.spawn import Process
from cni_py.protocol import conflist, netconf
from cni_py.protocol.cache import Entry
from cni_py.protocol.conflist import Network
from cni_py.protocol.gojson import Object, decode, encode
from cni_py.protocol.netconf import NetConf
from cni_py.protocol.result import from_json, to_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.protocol.gojson import Encodable

ATTACHED = ("ADD", "DEL", "CHECK")  # verbs about one interface of one container
STOP_S = 5.0  # time for a plugin to take back what it did, before it is killed
LINE_MAX = 160  # characters of an error and its details on one line
CONFIGURATION = (1, 2, 6, 7)  # codes of errors whose cause is in the network's file
KILLED = "it was killed by"
GC_SINCE = "1.1.0"  # GC and STATUS came with it


class PluginFailed(Exception):
    """A plugin answered with an error."""

    def __init__(self, verb: str, plugin: str, error: CniError, place: str = "") -> None:
        text, details = error.msg + place, error.details
        if details:
            fits = "\n" not in details and len(text) + len(details) < LINE_MAX
            text += f": {details}" if fits else f"\n  details: {details}"
        code = f" (code {error.code})" if error.code else ""  # 0: it gave none
        super().__init__(f"{verb} failed in plugin {plugin}{code}: {text}")
        self.plugin = plugin
        self.error = error


def place_in(network: Network, error: CniError) -> str:
    """The file, and the line where one key that the error names stands; "" for an error that is not about it."""
    if error.code not in CONFIGURATION or not network.source.startswith("/") or network.source in error.msg:
        return ""
    try:
        text = Path(network.source).read_text(errors="replace")
    except OSError:
        return ""
    line = conflist.line_of(text, error.msg)
    return f" ({network.source}, line {line})" if line else f" ({network.source})"


@dataclass(frozen=True, slots=True)
class Chain:
    """The plugins of one network, and the attachment they are run for (all empty for GC, STATUS and VERSION)."""

    network: Network
    path: list[str]
    say: Callable[[str], None]  # the steps, for people: silent with --json
    answer: Callable[[str], None]  # what was asked for
    hushed: bool = False  # what plugins write to stderr is not passed on
    container_id: str = ""
    ifname: str = ""
    netns: str = ""
    cni_args: Sequence[tuple[str, str]] = ()
    capability_args: Object = field(default_factory=Object)

    @property
    def args(self) -> str:
        """CNI_ARGS."""
        return ";".join(f"{key}={value}" for key, value in self.cni_args)

    def check_plugins(self) -> None:
        """Failure 3 for a plugin, or a plugin's IPAM plugin, that is not there: before the first of the chain acts."""
        for plugin in self.network.plugins:
            ipam = netconf.child(plugin, "ipam") or Object()
            for name in (netconf.string(plugin, "type"), netconf.string(ipam, "type")):
                if name:
                    self.find(name)

    def find(self, name: str) -> str:
        """The executable of a plugin."""
        try:
            return delegate.find(name, self.path)
        except CniError as error:
            raise Failure(f"{error}; `cni-py install` installs ours, --bin-dir names other folders", LACKING) from error

    def stdin(
        self, plugin: Object, prev_result: Object | None, extra: "Mapping[str, Encodable] | None" = None
    ) -> bytes:
        """What a plugin is told."""
        return conflist.request(self.network, plugin, self.capability_args, prev_result, extra)

    def run(
        self,
        verb: str,
        plugin: Object,
        prev_result: Object | None = None,
        extra: "Mapping[str, Encodable] | None" = None,
    ) -> bytes:
        """Execute one plugin; its stdout. PluginFailed with its error object; its stderr goes to ours."""
        name = netconf.string(plugin, "type")
        environ = {name: value for name, value in os.environ.items() if not name.startswith("CNI_")}
        environ |= {"CNI_COMMAND": verb, "CNI_PATH": ":".join(self.path)}
        if verb in ATTACHED:
            environ |= {
                "CNI_CONTAINERID": self.container_id,
                "CNI_IFNAME": self.ifname,
                "CNI_NETNS": self.netns,
                "CNI_ARGS": self.args,
            }
        path = self.find(name)
        started = time.perf_counter()
        try:
            status, stdout = executed(path, environ, self.stdin(plugin, prev_result, extra), self.hushed)
        except OSError as error:
            raise PluginFailed(verb, name, CniError(delegate.cannot_run(path, error), code=0)) from error
        if status != 0:
            error_object = error_in(stdout, status)
            raise PluginFailed(verb, name, error_object, place_in(self.network, error_object))
        self.say(f"{verb} {name:<12} {(time.perf_counter() - started) * 1000:7.1f} ms")
        return stdout

    def add(self, added: list[str]) -> Object:
        """Every plugin in order; the last one's result. PluginFailed, or an interruption, leaves `added` to undo()."""
        prev_result: Object | None = None
        for plugin in self.network.plugins:
            name = netconf.string(plugin, "type")
            stdout = self.run("ADD", plugin, prev_result)
            added.append(name)
            prev_result = answer_in(stdout, "ADD", name)
        assert prev_result is not None  # a network has a plugin
        return prev_result

    def delete(self, prev_result: Object | None) -> None:
        """In reverse; stops at the first failure, so that what it needs is still there for the next try."""
        for plugin in reversed(self.network.plugins):
            self.run("DEL", plugin, prev_result)

    def undo(self, added: Sequence[str], cause: BaseException, verbose: bool) -> None:
        """DEL after a failed ADD, every plugin of it: there may be no later one. Says how it went where that matters."""
        chain = self if verbose else replace(self, say=lambda _: None, hushed=True)
        why = ["interrupted"]
        try:
            failures = chain.every("DEL", self.network.plugins[::-1])
            why = [str(failure) for failure in failures if verbose or not self.is_echo(failure, cause, added)]
        finally:
            if why and (verbose or added or self.has_left(cause)):
                what = "the failed ADD could not be taken back as a whole, so DEL it again"
                complain(f"cni-py-exec: {what}: {'; '.join(why)}")
            elif verbose or added or isinstance(cause, KeyboardInterrupt):
                complain("cni-py-exec: the failed ADD was taken back by DEL")

    def is_echo(self, failure: PluginFailed, cause: BaseException, added: Sequence[str]) -> bool:
        """Whether a DEL only repeats the error of its ADD, which one of our plugins has taken back by itself."""
        if not isinstance(cause, PluginFailed) or failure.plugin in added or failure.plugin != cause.plugin:
            return False
        same = failure.error.to_json() == cause.error.to_json()
        return same and run.is_own_launcher(self.find(failure.plugin))

    def has_left(self, cause: BaseException) -> bool:
        """Whether an ADD of which no plugin succeeded may have left something nevertheless."""
        if not isinstance(cause, PluginFailed) or cause.error.msg.startswith(KILLED):
            return True  # stopped in the middle
        key = Attachment(self.network.name, self.container_id, self.ifname)
        return os.path.isdir(key.folder) or namespaces.has_interface(self.netns, self.ifname)

    def every(
        self, verb: str, plugins: Sequence[Object], extra: "Mapping[str, Encodable] | None" = None
    ) -> list[PluginFailed]:
        """Run all of them, also after one that fails; the failures."""
        failures = []
        for plugin in plugins:
            try:
                self.run(verb, plugin, extra=extra)
            except PluginFailed as failure:
                failures.append(failure)
        return failures

    def speaks(self, plugin: Object, wanted: str) -> bool:
        """Whether a plugin and its IPAM plugin speak a version of the specification, by their own word."""
        ipam = netconf.string(netconf.child(plugin, "ipam") or Object(), "type")
        for name in filter(None, (netconf.string(plugin, "type"), ipam)):
            quiet = replace(self, say=lambda _: None)
            fields = answer_in(quiet.run("VERSION", Object([("type", name)])), "VERSION", name)
            if wanted not in netconf.strings(fields, "supportedVersions"):
                return False
        return True

    def at_least(self, wanted: str) -> tuple["Chain", list[str]]:
        """The chain for a verb that came with version `wanted`, and the plugins left out of it because they are older.

        An older network's plugins hear that version, if they speak it: what they keep does not depend on the version.
        """
        if version.at_least(self.network.cni_version, wanted):
            return self, []
        able = [plugin for plugin in self.network.plugins if self.speaks(plugin, wanted)]
        unable = [netconf.string(plugin, "type") for plugin in self.network.plugins if plugin not in able]
        return replace(self, network=replace(self.network, cni_version=wanted, plugins=tuple(able))), unable

    def prev_result_of(self, entry: Entry | None) -> Object | None:
        """The cached result in the form of the network's version. DEL and CHECK have it from 0.4.0 on."""
        if entry is None or entry.result is None or not version.at_least(self.network.cni_version, "0.4.0"):
            return None
        stated = netconf.string(entry.result, "cniVersion") or self.network.cni_version
        if stated == self.network.cni_version:
            return entry.result
        return to_json(from_json(entry.result, stated), self.network.cni_version)


def executed(path: str, environ: dict[str, str], stdin: bytes, hushed: bool = False) -> tuple[int, bytes]:
    """Run a plugin: exit status and stdout. Interrupted, it is asked to stop first: its DEL must not overtake it."""
    process = Process([path], environ, stdin, stderr=-1 if hushed else 2)
    try:
        status = process.wait()
    except BaseException:
        process.stop(STOP_S)
        raise
    return status, process.stdout


def error_in(stdout: bytes, status: int) -> CniError:
    """The error object of a plugin that failed."""
    try:
        return delegate.error_object(stdout)
    except CniError:
        pass
    said = stdout.decode("utf-8", "replace").strip()
    ended = f"{KILLED} {signal_name(-status)}" if status < 0 else f"it ended with status {status}"
    return CniError(f"{ended} and no error object", f"it printed: {said}" if said else "", 0)


def signal_name(number: int) -> str:
    """SIGKILL for 9."""
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def answer_in(stdout: bytes, verb: str, plugin: str) -> Object:
    """What a plugin that succeeded printed: a result, or its versions."""
    try:
        fields = decode(stdout)
    except CniError as error:
        said = "it printed nothing, where a result is expected"
        if stdout.strip():
            said = "its answer is not JSON: what it print()s goes to stdout, which is for the result alone"
        raise PluginFailed(verb, plugin, CniError(said, str(error) if stdout.strip() else "", 0)) from error
    if not isinstance(fields, Object):
        raise PluginFailed(verb, plugin, CniError("its answer is not a JSON object", code=0))
    return fields


def refuse_foreign(chain: Chain, plugin: Object) -> None:
    """Failure 3 for a plugin whose operations only it can tell."""
    ipam = netconf.child(plugin, "ipam") or Object()
    for name in (netconf.string(plugin, "type"), netconf.string(ipam, "type")):
        if name and not run.is_own_launcher(chain.find(name)):
            raise Failure(
                f"the plan ends here: {chain.find(name)} is not one of our plugins, and only it knows what it would do",
                LACKING,
            )


def planned(
    chain: Chain, plugin: Object, netns: str, prev_result: Object | None
) -> tuple[list[tuple[Op, str]], Object]:
    """The operations of one of our plugins in words, and the result it would have. Failure 3 for a foreign one."""
    name = netconf.string(plugin, "type")
    refuse_foreign(chain, plugin)
    try:
        call = planned_call(chain, plugin, netns, prev_result)
        call.conf.check_common()
        result = to_json(run.load(name).add(call), call.conf.cni_version)
        assert isinstance(call.executor, Planner)
        plan = [(op, op.foretell(call.kernel)) for op in call.executor.plan]
    except CniError as error:
        raise PluginFailed("ADD", name, error, place_in(chain.network, error)) from error
    except OSError as error:
        raise PluginFailed("ADD", name, os_error("the plan cannot be made", error)) from error
    as_read = decode(encode(result).encode())  # the next plugin reads text
    assert isinstance(as_read, Object)
    return plan, as_read


def planned_call(chain: Chain, plugin: Object, path: str, prev_result: Object | None) -> Call:
    """The call as the plugin's executable would be given it. IncompatibleCniVersion as from there."""
    conf = NetConf.parse(chain.stdin(plugin, prev_result))
    if conf.cni_version not in version.SUPPORTED:
        raise IncompatibleCniVersion("incompatible CNI versions", f'config is "{conf.cni_version}"')
    return Call(
        "ADD",
        netconf.string(plugin, "type"),
        conf,
        container_id=chain.container_id,
        netns=path,
        ifname=chain.ifname,
        args=chain.args,
        path=chain.path,
        dry_run=True,
    )
