"""A network's plugins executed one after the other, as libcni does it (libcni/api.go, pkg/invoke)."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from cni_py import conflist, invoke, netconf, run, version
from cni_py.call import Call
from cni_py.commands.report import LACKING, Failure
from cni_py.conflist import Network
from cni_py.engine import Op, Planner
from cni_py.errors import CniError, IncompatibleCniVersion
from cni_py.jsontext import Object, decode, encode
from cni_py.libcni_cache import Entry
from cni_py.netconf import NetConf
from cni_py.result import from_json, to_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.jsontext import Encodable

ATTACHED = ("ADD", "DEL", "CHECK")  # verbs about one interface of one container
STOP_S = 5.0  # time for a plugin to take back what it did, before it is killed


class PluginFailed(Exception):
    """A plugin answered with an error."""

    def __init__(self, verb: str, plugin: str, error: CniError) -> None:
        details = f"\n  details: {error.details}" if error.details else ""
        super().__init__(f"{verb} failed in plugin {plugin} (code {error.code}): {error.msg}{details}")
        self.plugin = plugin
        self.error = error


@dataclass(frozen=True, slots=True)
class Chain:
    """The plugins of one network, and the attachment they are run for (all empty for GC, STATUS and VERSION)."""

    network: Network
    path: list[str]
    say: Callable[[str], None]  # the steps, for people: silent with --json
    answer: Callable[[str], None]  # what was asked for
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
            return invoke.find(name, self.path)
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
            status, stdout = executed(path, environ, self.stdin(plugin, prev_result, extra))
        except OSError as error:
            raise PluginFailed(verb, name, CniError(f"cannot run {path}", error.strerror or "")) from error
        if status != 0:
            raise PluginFailed(verb, name, error_in(stdout, status))
        self.say(f"{verb} {name:<12} {(time.perf_counter() - started) * 1000:7.1f} ms")
        return stdout

    def add(self) -> Object:
        """Every plugin in order; the last one's result. PluginFailed, or an interruption, leaves the rest to undo()."""
        prev_result: Object | None = None
        for plugin in self.network.plugins:
            prev_result = answer_in(self.run("ADD", plugin, prev_result), "ADD", netconf.string(plugin, "type"))
        assert prev_result is not None  # a network has a plugin
        return prev_result

    def delete(self, prev_result: Object | None) -> None:
        """In reverse; stops at the first failure, so that what it needs is still there for the next try."""
        for plugin in reversed(self.network.plugins):
            self.run("DEL", plugin, prev_result)

    def undo(self) -> None:
        """DEL after a failed ADD, every plugin of it: there may be no later one. Says how it went."""
        why = "interrupted"
        try:
            why = "; ".join(map(str, self.every("DEL", self.network.plugins[::-1])))
        finally:
            how = f"could not be taken back as a whole, so DEL it again: {why}" if why else "was taken back by DEL"
            print(f"cni-py-exec: the failed ADD {how}", file=sys.stderr)

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

    def prev_result_of(self, entry: Entry | None) -> Object | None:
        """The cached result in the form of the network's version. DEL and CHECK have it from 0.4.0 on."""
        if entry is None or entry.result is None or not version.at_least(self.network.cni_version, "0.4.0"):
            return None
        stated = netconf.string(entry.result, "cniVersion") or self.network.cni_version
        if stated == self.network.cni_version:
            return entry.result
        return to_json(from_json(entry.result, stated), self.network.cni_version)


def executed(path: str, environ: dict[str, str], stdin: bytes) -> tuple[int, bytes]:
    """Run a plugin: exit status and stdout. Interrupted, it is asked to stop first: its DEL must not overtake it."""
    with subprocess.Popen([path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ) as process:
        try:
            stdout, _ = process.communicate(stdin)
        except BaseException:
            process.terminate()
            try:
                process.wait(STOP_S)
            except (subprocess.TimeoutExpired, KeyboardInterrupt):
                process.kill()
                process.wait()
            raise
    return process.returncode, stdout


def error_in(stdout: bytes, status: int) -> CniError:
    """The error object of a plugin that failed."""
    try:
        fields = decode(stdout)
        if isinstance(fields, Object):
            code = netconf.integer(fields, "code")
            return CniError(netconf.string(fields, "msg"), netconf.string(fields, "details"), code)
    except CniError:
        pass
    said = stdout.decode("utf-8", "replace").strip()
    return CniError(f"it ended with status {status} and no error object", f"it printed: {said}" if said else "", 0)


def answer_in(stdout: bytes, verb: str, plugin: str) -> Object:
    """What a plugin that succeeded printed: a result, or its versions."""
    try:
        fields = decode(stdout)
    except CniError as error:
        raise PluginFailed(verb, plugin, CniError("its answer is not JSON", str(error))) from error
    if not isinstance(fields, Object):
        raise PluginFailed(verb, plugin, CniError("its answer is not a JSON object"))
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


def planned(chain: Chain, plugin: Object, netns: str, prev_result: Object | None) -> tuple[list[Op], Object]:
    """The operations of one of our plugins, and the result it would have. Failure 3 for a foreign one."""
    name = netconf.string(plugin, "type")
    refuse_foreign(chain, plugin)
    try:
        call = planned_call(chain, plugin, netns, prev_result)
        result = to_json(run.load(name).add(call), call.conf.cni_version)
    except CniError as error:
        raise PluginFailed("ADD", name, error) from error
    assert isinstance(call.executor, Planner)
    as_read = decode(encode(result).encode())  # the next plugin reads text
    assert isinstance(as_read, Object)
    return call.executor.plan, as_read


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
