"""One CNI call from end to end: the only reader of stdin and CNI_*, the only writer of stdout.

    environment -> verb and values, checked        SPEC.md section 2 "CNI protocol"
    stdin       -> NetConf                         SPEC.md section 1
    Plugin.add/delete/check/gc/status(Call)
    Result or error object -> stdout               SPEC.md sections 5 and "Error"

The order of the checks is that of libcni's pkg/skel, since runtimes and their tests see which error comes first.
"""

import sys

from cni_py import version
from cni_py.errors import CniError, DecodingFailure, IncompatibleCniVersion, InvalidEnvironment, InvalidNetns, os_error
from cni_py.lean import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import FrameType

    from cni_py.attachment.call import Call, Plugin
    from cni_py.protocol.netconf import NetConf

# variable, verbs that require it; in the order libcni looks at them
REQUIRED = (
    ("CNI_COMMAND", ("ADD", "CHECK", "DEL", "GC", "STATUS", "VERSION")),
    ("CNI_CONTAINERID", ("ADD", "CHECK", "DEL")),
    ("CNI_NETNS", ("ADD", "CHECK")),
    ("CNI_IFNAME", ("ADD", "CHECK", "DEL")),
    ("CNI_PATH", ("ADD", "CHECK", "DEL", "GC", "STATUS")),
)
SINCE = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}
STDIN_MAX = 16 << 20  # bytes; a configuration with prevResult and pod annotations has some thousand


class Interrupted(BaseException):
    """A signal asks us to stop. Not a CniError, so that no `except CniError` on the way catches it."""


def main(plugin: "Plugin | str", load: "Callable[[str], Plugin] | None" = None) -> int:
    """Run one call of `plugin`, an object or a name for `load`; returns the exit status.

    Catches every exception: a plugin that ends without an error object on stdout is reported as "netplugin failed" only.
    """
    fill_closed_streams()
    return answer(plugin, load)


def answer(plugin: "Plugin | str", load: "Callable[[str], Plugin] | None" = None) -> int:
    """As main(), when the standard streams are open."""
    name = plugin if isinstance(plugin, str) else plugin.type
    try:
        return _run(name, lambda: load(plugin) if isinstance(plugin, str) and load else plugin)  # type: ignore[arg-type, return-value]  # one or the other
    except CniError as error:
        _print_error(error)
    except Interrupted as stop:
        _print_error(CniError(str(stop)))
    except OSError as error:
        _print_error(os_error(f"{name} failed", error))
    except ImportError as error:  # half of an upgrade, or of a removal
        lost = f"the Python package that the plugin {name} runs is not whole: {error}"
        _print_error(CniError(lost, f"install it again in {os.path.dirname(os.path.dirname(__file__))}"))
    except Exception as error:  # noqa: BLE001  the one place: see above
        import traceback

        _print_error(CniError(f"internal error: {type(error).__name__}", str(error)))
        _complain(traceback.format_exc())
    return 1


def _run(name: str, plugin: "Callable[[], Plugin]") -> int:
    verb = os.environ.get("CNI_COMMAND", "")
    if not verb:
        return _about(name, plugin)
    if verb == "VERSION":
        _write(version.reply(plugin().versions or version.SUPPORTED))
        return 0
    _check_environment(verb, os.environ)
    from cni_py.protocol.netconf import NetConf

    conf = NetConf.parse(_read_stdin())
    if verb not in ("ADD", "DEL", "CHECK", "GC", "STATUS"):
        raise InvalidEnvironment(f"unknown CNI_COMMAND: {verb}")
    loaded = plugin()
    check_version(verb, conf.cni_version, loaded.versions or version.SUPPORTED)
    return _dispatch(verb, loaded, conf)


def _about(name: str, plugin: "Callable[[], Plugin]") -> int:
    """Without CNI_COMMAND, as when a person starts it: print the version to stderr.

    nerdctl reads a semantic version from firewall's output, to learn its features. So that is the version of the Go plugins
    whose features ours have, with our own version as its build metadata.
    """
    from cni_py import REFERENCE_VERSION, __version__

    versions = ", ".join(plugin().versions or version.SUPPORTED)
    _complain(
        f"CNI {name} plugin v{REFERENCE_VERSION}+cni-py.{__version__}\nCNI protocol versions supported: {versions}"
    )
    return 0


def _check_environment(verb: str, environ: "Mapping[str, str]") -> None:
    """InvalidEnvironment for the first malformed variable, or for all missing ones together."""
    missing = []
    for variable, verbs in REQUIRED:
        value = environ.get(variable, "")
        if verb not in verbs:
            continue
        if not value:
            missing.append(variable)
        elif variable == "CNI_CONTAINERID":
            _check_container_id(value)
        elif variable == "CNI_IFNAME":
            _check_ifname(value)
    if missing:
        raise InvalidEnvironment(f"required env variables [{','.join(missing)}] missing")


def _check_container_id(value: str) -> None:
    from cni_py.protocol.netconf import is_identifier

    if not is_identifier(value):
        raise InvalidEnvironment("invalid characters in containerID", value)


def _check_ifname(value: str) -> None:
    from cni_py.protocol.netconf import IFNAME_MAX

    if len(os.fsencode(value)) > IFNAME_MAX:
        raise InvalidEnvironment("interface name is too long", "interface name should be less than 16 characters")
    if value in (".", ".."):
        raise InvalidEnvironment("interface name is . or ..")
    if any(character in "/:" or character.isspace() for character in value):
        raise InvalidEnvironment("interface name contains / or : or whitespace characters")


def check_version(verb: str, cni_version: str, supported: "Sequence[str]") -> None:
    """IncompatibleCniVersion for a configuration of a version in which a plugin does not have the verb, or does not speak."""
    if verb in SINCE:
        if not version.at_least(cni_version, SINCE[verb]):
            raise IncompatibleCniVersion(f"config version does not allow {verb}")
        if not any(version.at_least(ours, cni_version) for ours in supported):
            raise IncompatibleCniVersion(f"plugin version does not allow {verb}")
    if verb == "DEL" and cni_version in version.SUPPORTED:
        return  # a failure here would stop libcni from DELing the other plugins of the list, which speak this version
    if cni_version not in supported:
        listed = " ".join(f'"{ours}"' for ours in supported)
        raise IncompatibleCniVersion(
            "incompatible CNI versions", f'config is "{cni_version}", plugin supports [{listed}]'
        )


def _dispatch(verb: str, plugin: "Plugin", conf: "NetConf") -> int:
    from cni_py.attachment.call import Call

    environ = os.environ
    attached = verb in ("ADD", "DEL", "CHECK")
    call = Call(
        verb,
        plugin.type,
        conf,
        container_id=environ.get("CNI_CONTAINERID", "") if attached else "",
        netns=environ.get("CNI_NETNS", "") if attached else "",
        ifname=environ.get("CNI_IFNAME", "") if attached else "",
        args=environ.get("CNI_ARGS", ""),
        path=environ.get("CNI_PATH", "").split(":"),
    )
    if verb != "DEL":
        return _logged(call, plugin)
    from cni_py.protocol.netconf import Tolerant

    call.may_be_hosts = _may_be_hosts()
    with Tolerant():
        return _logged(call, plugin)


def _logged(call: "Call", plugin: "Plugin") -> int:
    if "log" in call.conf.raw:
        from cni_py.attachment.log import logged

        return logged(call, lambda: _perform(call, plugin))
    return _perform(call, plugin)


def _perform(call: "Call", plugin: "Plugin") -> int:
    try:
        _run_verb(call, plugin)
    finally:
        call.kernel.leave()
    return 0


def _run_verb(call: "Call", plugin: "Plugin") -> None:
    if call.verb in ("ADD", "DEL"):
        from cni_py.attachment.locks import attachment_lock

        is_add = call.verb == "ADD"
        if is_add:
            _check_netns(call)
        with attachment_lock(call.key, plugin.type, needed=is_add):
            _add(call, plugin) if is_add else plugin.delete(call)
    else:
        if call.verb == "GC":
            call.conf.check_attachments()
        {"CHECK": plugin.check, "GC": plugin.gc, "STATUS": plugin.status}[call.verb](call)


def _check_netns(call: "Call") -> None:
    """InvalidNetns for a container in the plugin's own namespace: ADD would change the host's interfaces."""
    if not call.netns or _may_be_hosts():
        return
    try:
        container, host = os.stat(call.netns), os.stat("/proc/self/ns/net")
    except OSError:
        return  # gone or unreadable: the plugin raises the error
    if (container.st_dev, container.st_ino) == (host.st_dev, host.st_ino):
        raise InvalidNetns("plugin's netns and netns from CNI_NETNS should not be the same", call.netns)


def _may_be_hosts() -> bool:
    """Whether the container may share the plugin's own namespace."""
    return os.environ.get("CNI_NETNS_OVERRIDE", "").lower() in ("1", "true")


def _add(call: "Call", plugin: "Plugin") -> None:
    """ADD, all or nothing: any failure or signal before the result is written undoes everything."""
    from cni_py.protocol.result import to_json

    _catch_signals(_interrupted)
    try:
        call.conf.check_common()
        result = plugin.add(call)
        text = _encode(to_json(result, call.conf.cni_version))
        call.finish()
        _catch_signals(None)
        _write(text)
    except BaseException:
        _catch_signals(None)
        for failure in call.roll_back():
            _complain(f"cni-py: {plugin.type}: while undoing a failed ADD of {call.key.label}: {failure}")
        raise


def _catch_signals(handler: "Callable[[int, FrameType | None], None] | None") -> None:
    """Let `handler` handle SIGTERM, SIGINT and SIGHUP. None: ignore them, so that nothing interrupts a roll-back.

    What whoever started us ignores, as nohup(1) does, stays ignored.
    """
    import _signal

    for number in (_signal.SIGTERM, _signal.SIGINT, _signal.SIGHUP):
        if _signal.getsignal(number) != _signal.SIG_IGN:
            _signal.signal(number, handler or _signal.SIG_IGN)


def _interrupted(number: int, _frame: "FrameType | None") -> None:
    _catch_signals(None)  # a second one would interrupt the roll-back
    raise Interrupted(f"interrupted by signal {number}")


def fill_closed_streams() -> None:
    """Open /dev/null in place of a standard stream that is closed. For every executable of ours, before it opens anything.

    Otherwise the next file or socket would get the number, and the result would be written to it. The direction is the wrong
    one on purpose: reading the configuration from it, or writing the result to it, is an error.
    """
    streams = (sys.__stdin__, os.O_WRONLY), (sys.__stdout__, os.O_RDONLY), (sys.__stderr__, os.O_WRONLY)
    for number, (stream, flags) in enumerate(streams):
        if stream is None:
            fd = os.open("/dev/null", flags)
            if fd != number:
                os.dup2(fd, number)
                os.close(fd)
            os.set_inheritable(number, True)  # for programs started by execve(2): a delegate, docker-proxy's waiter
    if sys.__stderr__ is None:
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)


def _read_stdin() -> bytes:
    parts = []
    size = 0
    try:
        while part := os.read(0, 1 << 16):
            parts.append(part)
            size += len(part)
            if size > STDIN_MAX:
                raise DecodingFailure(f"the network configuration on stdin is larger than {STDIN_MAX >> 20} MiB")
    except OSError as error:
        raise os_error("cannot read the network configuration from stdin", error) from error
    return b"".join(parts)


def _encode(value: "object") -> str:
    from cni_py.protocol import gojson

    return gojson.encode(value)  # type: ignore[arg-type]  # to_json makes JSON values


def _print_error(error: CniError) -> None:
    try:
        _write(_encode(error.to_json()), 1)
    except CniError:
        _complain(str(error))  # stdout cannot be written to


def _to_stdout(text: bytes, _status: int) -> None:
    while text:
        text = text[os.write(1, text) :]


# Writes what belongs on stdout, and is told the exit status that follows. OSError. In the warm service (serve/call) the
# launcher writes, which has the stdout.
deliver: "Callable[[bytes, int], None]" = _to_stdout


def _write(text: str, status: int = 0) -> None:
    try:
        deliver(text.encode("utf-8", "replace"), status)
    except OSError as error:
        raise os_error("cannot write to stdout", error) from error


def _complain(text: str) -> None:
    """Write it to stderr. A stderr that is full or closed is ignored."""
    try:
        os.write(2, f"{text.rstrip()}\n".encode("utf-8", "replace"))
    except OSError:
        pass
