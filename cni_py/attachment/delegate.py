"""Delegation: run another plugin, in practice the IPAM plugin of `ipam.type`, found in CNI_PATH.

Reference: SPEC.md section 4 "Plugin Delegation". The texts of errors are those of libcni's pkg/invoke, which clients know. If the
file is one of our own executables, its plugin runs in this process, which saves the start of an interpreter.
"""

import errno
import time
from _signal import strsignal

from cni_py import version
from cni_py.errors import CniError, DecodingFailure, InvalidNetworkConfig
from cni_py.lean import os
from cni_py.protocol import gojson
from cni_py.protocol.netconf import integer, string
from cni_py.protocol.result import from_json, to_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cni_py.attachment.call import Call, Plugin
    from cni_py.kernel.spawn import Process
    from cni_py.protocol.result import Result

IPAM_PLUGINS = ("dhcp", "host-local", "static")  # of ours
LINE_MAX = 256  # bytes of a first line; BINPRM_BUF_SIZE, linux/binfmts.h
NO_PROGRAM = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOEXEC, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)
BUSY_TRIES = 6  # libcni's pkg/invoke/raw_exec.go: a plugin that is being replaced is "text file busy"


class NotExecuted(CniError):
    """The delegate died without a CNI error object; libcni gives this code 0."""

    code = 0


class NotRunnable(NotExecuted):
    """The delegate is a file that cannot be started: no program, or one that lacks its interpreter or the mode."""


def ipam_add(call: "Call") -> "Result":
    """ADD of the IPAM plugin. If the calling ADD fails later, the IPAM plugin's DEL undoes it."""
    path = find(ipam_type(call), call.path)
    ours = own_plugin(path)
    if ours is not None:
        return as_printed(ours.add(call.delegated(ours.type)), call.conf.cni_version)
    if call.dry_run:
        raise CniError(f"the IPAM plugin {path} is not ours: what it would answer cannot be told without asking it")
    call.executor.undone_by(lambda: _delete_again(call))
    text = execute(path, "ADD", call.conf.text)
    result = decode_result(text, call.conf.cni_version)
    call.hand_out([ip.address.packed for ip in result.ips])
    return result


def examine(call: "Call") -> None:
    """Before the caller's first effect: CniError if the IPAM plugin is missing, or is ours and refuses its configuration."""
    ours = own_plugin(find(ipam_type(call), call.path))
    if ours is not None and ours.examine is not None:
        ours.examine(call.delegated(ours.type))


def ipam(call: "Call", verb: str) -> None:
    """DEL, CHECK, GC or STATUS of the IPAM plugin."""
    path = find(ipam_type(call), call.path)
    run(call, verb, path, own_plugin(path))


def run(call: "Call", verb: str, path: str, ours: "Plugin | None") -> None:
    """Run a verb but ADD of the IPAM plugin at `path`; `ours` is its plugin if it is one of our executables."""
    if ours is None:
        try:
            if verb == "DEL":
                call.withdraw_ports()
        finally:
            execute(path, verb, call.conf.text)
        return
    {"DEL": ours.delete, "CHECK": ours.check, "GC": ours.gc, "STATUS": ours.status}[verb](call.delegated(ours.type))


def ipam_type(call: "Call") -> str:
    """ipam.type, or "", for which find() raises an error."""
    return string(call.conf.ipam, "type") if call.conf.ipam is not None else ""


def by_interface(call: "Call") -> bool:
    """Whether the IPAM plugin needs the container's interface: dhcp asks for an address there, and gives it back there."""
    return ipam_type(call) == "dhcp"


def _delete_again(call: "Call") -> None:
    execute(find(ipam_type(call), call.path), "DEL", call.conf.text)


def find(name: str, path: "Sequence[str]") -> str:
    """The first regular file called `name` in the folders of `path`, executable or not, as libcni has it."""
    if not name:
        raise InvalidNetworkConfig('no plugin name provided: ipam needs a "type"')
    if "/" in name:
        raise InvalidNetworkConfig(f"invalid plugin name: {name}")
    for folder in path:
        candidate = f"{folder}/{name}"
        if folder and os.path.isfile(candidate):
            return candidate
    raise InvalidNetworkConfig(f'failed to find plugin "{name}" in path [{" ".join(path)}]')


def own_plugin(path: str) -> "Plugin | None":
    """The IPAM plugin of the executable at `path`; None unless that is a launcher of this installation."""
    from cni_py import run as launcher

    name = os.path.basename(path)
    if not launcher.is_own_launcher(path):
        return None
    if name not in IPAM_PLUGINS:  # bridge would delegate to bridge, and so on
        raise InvalidNetworkConfig(f'ipam.type: "{name}" is not an IPAM plugin', f"one of {', '.join(IPAM_PLUGINS)}")
    return launcher.load(name)


def execute(path: str, verb: str, stdin: bytes) -> bytes:
    """Run the plugin at `path` and return its stdout; its own error object is raised again with its code."""
    process = _start(path, dict(os.environ, CNI_COMMAND=verb), stdin)
    try:
        status = process.wait()
    except BaseException:
        process.stop()  # the call is given up, and its DEL must not overtake the delegate
        raise
    stdout, stderr = process.stdout, process.stderr
    if status == 0:
        _pass_on(stderr)
        return stdout
    if not stdout:
        if stderr:
            raise NotExecuted(f"netplugin failed: {gojson.encode(stderr.decode('utf-8', 'replace'), None)}")
        ended = f"exit status {status}" if status > 0 else f"signal: {strsignal(-status) or -status}".lower()
        raise NotExecuted(f"netplugin failed with no error message: {ended}")
    try:
        failure = error_object(stdout)
    except CniError as error:
        quoted = gojson.encode(stdout.decode("utf-8", "replace"), None)
        raise NotExecuted(f"netplugin failed but error parsing its diagnostic message {quoted}: {error}") from error
    raise failure


def _pass_on(stderr: bytes) -> None:
    try:
        os.write(2, stderr)
    except OSError:
        pass  # nobody listens, which is no reason to fail


def _start(path: str, environ: "dict[str, str]", stdin: bytes) -> "Process":
    from cni_py.kernel.spawn import Process

    for attempt in range(BUSY_TRIES):
        try:
            return Process([path], environ, stdin)
        except OSError as error:
            if error.errno == errno.ETXTBSY and attempt < BUSY_TRIES - 1:
                time.sleep(1)
                continue
            kind = NotRunnable if error.errno in NO_PROGRAM else NotExecuted  # what passes is no reason to give up
            raise kind(f"netplugin failed with no error message: {cannot_run(path, error)}") from error
    raise AssertionError("unreachable: the last attempt returns or raises")


def cannot_run(path: str, error: OSError) -> str:
    """Why a plugin that is there cannot be started: its interpreter is missing, it is no program, it may not be run."""
    interpreter = ""
    try:
        with open(path, "rb") as file:
            head = file.readline(LINE_MAX)
        if head.startswith(b"#!"):
            interpreter = os.fsdecode(head[2:].strip()).split(" ")[0]
    except OSError:
        pass  # the first error says enough
    if error.errno == errno.ENOENT and interpreter and not os.path.exists(interpreter):
        return f"cannot run {path}: its interpreter {interpreter} is not there (see its first line)"
    if error.errno == errno.ENOEXEC:
        return f'cannot run {path}: it is no program of this machine, nor a script that begins with "#!"'
    if error.errno == errno.EACCES:
        return f"cannot run {path}: {error.strerror}: `chmod +x` it, if its file system is not mounted noexec"
    return f"cannot run {path}: {error.strerror or error}"


def error_object(stdout: bytes) -> CniError:
    """The error object that a plugin printed, with its own code (0: it gave none). CniError (code 6) when it is none."""
    fields = gojson.decode(stdout)
    if not isinstance(fields, gojson.Object):
        raise DecodingFailure("not an object")
    return CniError(string(fields, "msg"), string(fields, "details"), integer(fields, "code"))


def as_printed(found: "Result", cni_version: str) -> "Result":
    """The result as it would be read from a delegate's stdout: in 0.1.0 and 0.2.0 a route has fewer fields."""
    if version.at_least(cni_version, "0.3.0"):
        return found  # nothing is lost
    found = from_json(to_json(found, cni_version), cni_version)
    found.form = None
    return found


def decode_result(text: bytes, cni_version: str) -> "Result":
    """The result that a delegate has printed; without a cniVersion it is of the configuration's version. CniError."""
    try:
        fields = gojson.decode(text)
    except DecodingFailure as error:
        raise CniError(f"failed to unmarshal raw result: {error}") from error
    if not isinstance(fields, gojson.Object):
        raise CniError("failed to unmarshal raw result: not an object")
    found = from_json(fields, string(fields, "cniVersion") or cni_version)
    found.form = None  # the caller makes it part of its own result
    return found
