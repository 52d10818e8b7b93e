"""Run the plugins of a network one after the other, as libcni does (libcni/api.go, pkg/invoke)."""

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
LINE_MAX = 160  # characters of an error and its details on one line
CONFIGURATION = (1, 2, 6, 7)  # codes of errors that are caused by the network's file
KILLED = "it was killed by"
GC_SINCE = "1.1.0"  # the first version of the specification with GC and STATUS


class PluginFailed(Exception):
    """A plugin ended with an error. The message names verb, plugin, code and `place`, the file and line if known."""

    def __init__(self, verb: str, plugin: str, error: CniError, place: str = "") -> None:
        text, details = error.msg + place, error.details
        if details:
            fits = "\n" not in details and len(text) + len(details) < LINE_MAX
            text += f": {details}" if fits else f"\n  details: {details}"
        code = f" (code {error.code})" if error.code else ""  # 0: the plugin gave none
        super().__init__(f"{verb} failed in plugin {plugin}{code}: {text}")
        self.plugin = plugin
        self.error = error


def place_in(network: Network, error: CniError) -> str:
    """ " (FILE, line N)" of a key that the error names, " (FILE)" if no line is known; "" if the file is not the cause."""
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
    say: Callable[[str], None]  # prints a step; does nothing with --json
    answer: Callable[[str], None]  # prints the result
    hushed: bool = False  # drops the stderr of the plugins
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
        """Failure 3 if the executable of a plugin or of its IPAM plugin is missing; called before the first plugin is run."""
        for plugin in self.network.plugins:
            for name in executables(plugin):
                self.find(name)

    def find(self, name: str) -> str:
        """The path of a plugin's executable. Failure 3 if there is none."""
        try:
            return delegate.find(name, self.path)
        except CniError as error:
            raise Failure(f"{error}; run `cni-py install`, or name its folder with --bin-dir", LACKING) from error

    def stdin(
        self, plugin: Object, prev_result: Object | None, extra: "Mapping[str, Encodable] | None" = None
    ) -> bytes:
        """The configuration for a plugin's stdin."""
        return conflist.request(self.network, plugin, self.capability_args, prev_result, extra)

    def run(
        self,
        verb: str,
        plugin: Object,
        prev_result: Object | None = None,
        extra: "Mapping[str, Encodable] | None" = None,
    ) -> bytes:
        """Execute one plugin and return its stdout. PluginFailed with its error object; its stderr is passed on."""
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
        self.say(f"{verb} {shown(plugin):<12} {(time.perf_counter() - started) * 1000:7.1f} ms")
        return stdout

    def add(self, added: list[str]) -> Object:
        """ADD of every plugin in order; returns the last result. `added` gets the plugins that succeeded. PluginFailed."""
        prev_result: Object | None = None
        for plugin in self.network.plugins:
            name = netconf.string(plugin, "type")
            stdout = self.run("ADD", plugin, prev_result)
            added.append(name)
            prev_result = answer_in(stdout, "ADD", name)
        assert prev_result is not None  # conflist.read() refuses a network without plugins
        return prev_result

    def delete(self, prev_result: Object | None) -> None:
        """DEL of every plugin in reverse order. It stops at the first failure, so that it can be repeated."""
        for plugin in reversed(self.network.plugins):
            self.run("DEL", plugin, prev_result)

    def undo(self, added: Sequence[str], cause: BaseException, verbose: bool) -> None:
        """DEL of every plugin after a failed ADD, also past a failure. Reported if something may have been made."""
        chain = self if verbose else replace(self, say=lambda _: None, hushed=True)
        why = ["interrupted"]
        try:
            failures = chain.every("DEL", self.network.plugins[::-1])
            why = [str(failure) for failure in failures if verbose or not self.is_echo(failure, cause, added)]
        finally:
            if why and (verbose or added or self.has_left(cause)):
                what = "the failed ADD could not be undone completely; run DEL again"
                complain(f"cni-py-exec: {what}: {'; '.join(why)}")
            elif verbose or added or isinstance(cause, KeyboardInterrupt):
                complain("cni-py-exec: the failed ADD was undone with DEL")

    def is_echo(self, failure: PluginFailed, cause: BaseException, added: Sequence[str]) -> bool:
        """Whether a DEL fails with the same error as its ADD. A failed ADD of our own plugins undoes itself: nothing is left."""
        if not isinstance(cause, PluginFailed) or failure.plugin in added or failure.plugin != cause.plugin:
            return False
        same = failure.error.to_json() == cause.error.to_json()
        return same and run.is_own_launcher(self.find(failure.plugin))

    def has_left(self, cause: BaseException) -> bool:
        """Whether an ADD may have left something although no plugin succeeded."""
        if not isinstance(cause, PluginFailed) or cause.error.msg.startswith(KILLED):
            return True  # the plugin was stopped in the middle
        return self.is_connected()

    def is_connected(self) -> bool:
        """Whether something of the attachment exists: a record of our plugins, or the container's interface."""
        key = Attachment(self.network.name, self.container_id, self.ifname)
        return os.path.isdir(key.folder) or bool(self.netns and namespaces.has_interface(self.netns, self.ifname))

    def every(
        self, verb: str, plugins: Sequence[Object], extra: "Mapping[str, Encodable] | None" = None
    ) -> list[PluginFailed]:
        """Run all plugins, also after one that fails. Returns the failures."""
        failures = []
        for plugin in plugins:
            try:
                self.run(verb, plugin, extra=extra)
            except PluginFailed as failure:
                failures.append(failure)
        return failures

    def speaks(self, plugin: Object, wanted: str) -> bool:
        """Whether a plugin and its IPAM plugin support a version of the specification, as they answer to VERSION."""
        for name in executables(plugin):
            quiet = replace(self, say=lambda _: None)
            fields = answer_in(quiet.run("VERSION", Object([("type", name)])), "VERSION", name)
            if wanted not in netconf.strings(fields, "supportedVersions"):
                return False
        return True

    def at_least(self, wanted: str) -> tuple["Chain", list[str]]:
        """The chain for a verb that exists since version `wanted`, and the plugins that are not in it since they are older.

        Plugins of an older network are called with `wanted` if they support it: their state does not depend on the version.
        """
        if version.at_least(self.network.cni_version, wanted):
            return self, []
        able = [plugin for plugin in self.network.plugins if self.speaks(plugin, wanted)]
        unable = [netconf.string(plugin, "type") for plugin in self.network.plugins if plugin not in able]
        return replace(self, network=replace(self.network, cni_version=wanted, plugins=tuple(able))), unable

    def prev_result_of(self, entry: Entry | None) -> Object | None:
        """The cached result, converted to the network's version; None before 0.4.0, in which DEL has no prevResult."""
        if entry is None or entry.result is None or not version.at_least(self.network.cni_version, "0.4.0"):
            return None
        stated = netconf.string(entry.result, "cniVersion") or self.network.cni_version
        if stated == self.network.cni_version:
            return entry.result
        return to_json(from_json(entry.result, stated), self.network.cni_version)


def executables(plugin: Object) -> list[str]:
    """The names of a plugin and, if it has one, its IPAM plugin; of a chain, also those of its plugins."""
    ipam = netconf.child(plugin, "ipam") or Object()
    names = [name for name in (netconf.string(plugin, "type"), netconf.string(ipam, "type")) if name]
    inner = [one for one in conflist.unchained(plugin) if one is not plugin]
    return [*names, *(name for one in inner for name in executables(one))]


def shown(plugin: Object) -> str:
    """The name of a plugin; of a chain, with those of its plugins."""
    name = netconf.string(plugin, "type")
    inner = [netconf.string(one, "type") for one in conflist.unchained(plugin) if one is not plugin]
    return f"{name} ({', '.join(inner)})" if inner else name


def executed(path: str, environ: dict[str, str], stdin: bytes, hushed: bool = False) -> tuple[int, bytes]:
    """Run a plugin: exit status and stdout. On an interruption it is stopped and waited for, since DEL must run after it."""
    process = Process([path], environ, stdin, stderr=-1 if hushed else 2)
    try:
        status = process.wait()
    except BaseException:
        process.stop()
        raise
    return status, process.stdout


def error_in(stdout: bytes, status: int) -> CniError:
    """The error object in the stdout of a plugin that failed; one of ours, with code 0, if there is none."""
    try:
        return delegate.error_object(stdout)
    except CniError:
        pass
    said = stdout.decode("utf-8", "replace").strip()
    ended = f"{KILLED} {signal_name(-status)}" if status < 0 else f"it ended with status {status}"
    return CniError(f"{ended} without an error object", f"it printed: {said}" if said else "", 0)


def signal_name(number: int) -> str:
    """SIGKILL for 9."""
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def answer_in(stdout: bytes, verb: str, plugin: str) -> Object:
    """The JSON object that a plugin printed when it succeeded: a result, or its versions. PluginFailed."""
    try:
        fields = decode(stdout)
    except CniError as error:
        said = "it printed nothing instead of a result"
        if stdout.strip():
            said = "its output is not JSON: stdout is for the result only, messages belong on stderr"
        raise PluginFailed(verb, plugin, CniError(said, str(error) if stdout.strip() else "", 0)) from error
    if not isinstance(fields, Object):
        raise PluginFailed(verb, plugin, CniError("its output is not a JSON object", code=0))
    return fields


def refuse_foreign(chain: Chain, plugin: Object) -> None:
    """Failure 3 for a plugin that is not ours: its operations are not known."""
    for name in executables(plugin):
        if not run.is_own_launcher(chain.find(name)):
            raise Failure(
                f"the plan ends here: {chain.find(name)} is not one of our plugins, so its operations are not known",
                LACKING,
            )


def planned(
    chain: Chain, plugin: Object, netns: str, prev_result: Object | None
) -> tuple[dict[str, list[tuple[Op, str]]], Object]:
    """The operations of one of our plugins, each with its line of the plan, and its predicted result. Failure 3, PluginFailed.

    They are listed under the plugin's name; those of a chain under the names of its plugins.
    """
    name = netconf.string(plugin, "type")
    refuse_foreign(chain, plugin)
    try:
        call = planned_call(chain, plugin, netns, prev_result)
        call.conf.check_common()
        result = to_json(run.load(name).add(call), call.conf.cni_version)
        assert isinstance(call.executor, Planner)
        plan: dict[str, list[tuple[Op, str]]]
        plan = {netconf.string(one, "type"): [] for one in conflist.unchained(plugin)}
        for op, part in zip(call.executor.plan, call.executor.parts, strict=True):
            plan[part or name].append((op, op.foretell(call.kernel)))
    except CniError as error:
        raise PluginFailed("ADD", name, error, place_in(chain.network, error)) from error
    except OSError as error:
        raise PluginFailed("ADD", name, os_error("the plan cannot be made", error)) from error
    as_read = decode(encode(result).encode())  # in the types that the next plugin would decode
    assert isinstance(as_read, Object)
    return plan, as_read


def planned_call(chain: Chain, plugin: Object, path: str, prev_result: Object | None) -> Call:
    """The call that the plugin's executable would make of its input. IncompatibleCniVersion as from there."""
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
