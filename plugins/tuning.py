"""tuning: sysctls of the container, and MAC, MTU, promiscuous and all-multicast mode and queue length of its interface.

    ADD    the plan -> result: prevResult, with the new MAC and MTU
    DEL    puts the interface's settings back, where the namespace still exists; failures are only warnings, since an error
           would keep the plugins before from their DEL
    CHECK  the plan of ADD against the kernel
    GC     attachments of this network that the runtime no longer knows
    STATUS that the administrator's list allows the sysctls

What ADD makes, in this order: the sysctls of the container; a file on the host with the interface's earlier settings; then, one
by one, the settings (tuning_plan.py, kernel/linksettings.py). With nothing to set it passes prevResult on.

A failed ADD puts all back. DEL leaves the sysctls, since another network of the container may want them. Example
configuration: conf/tuning.conflist.
"""

from cni_py import files
from cni_py.attachment.call import Call, Plugin, collect_garbage
from cni_py.errors import CniError, InvalidNetworkConfig, PluginNotAvailable, warn
from cni_py.lean import os
from cni_py.plugins.tuning_conf import TuningConf, saved_path
from cni_py.protocol.result import prev_result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.protocol.result import Result


def add(call: Call) -> "Result":
    """Tune the container."""
    conf = TuningConf(call)
    earlier = earlier_result(call)
    conf.check_add()
    wanted = conf.settings
    _ = call.kernel.container_fd  # raises where there is no namespace, even with nothing to set
    if wanted or conf.sysctl_paths:
        from cni_py.plugins.tuning_plan import plan

        call.begin()  # before plan() reads the settings: it puts back what an ADD that was killed has changed
        call.apply(plan(call, conf))
    for interface in earlier.interfaces:
        if interface.name == call.ifname:
            interface.mac = wanted.get("mac", interface.mac)
            if interface.mtu:  # only where a plugin before has given one
                interface.mtu = conf.mtu or interface.mtu
    return earlier


def earlier_result(call: Call) -> "Result":
    """prevResult. InvalidNetworkConfig where there is none."""
    earlier = prev_result(call.conf)
    if earlier is None:
        raise InvalidNetworkConfig("Required prevResult missing")
    return earlier


def delete(call: Call) -> None:
    """Put the interface's settings back. Failures are told as warnings."""
    for failure in call.run_all(Call.undo_recorded, restore_saved):
        warn(f"tuning: {failure}")


def restore_saved(call: Call) -> None:
    """Undo an ADD of the Go plugin, by its file. The file is removed even when the namespace is gone."""
    path = saved_path(call)
    try:
        text = files.read(path)
    except FileNotFoundError:
        return
    os.unlink(path)
    from cni_py.plugins.tuning_plan import restore

    restore(call, text)


def check(call: Call) -> None:
    """Compare the plan of ADD with the kernel."""
    from cni_py.plugins.tuning_plan import plan

    conf = TuningConf(call)
    earlier_result(call)
    call.check_plan(plan(call, conf))


def gc(call: Call) -> None:
    """Undo stale attachments by their records."""
    call.finish_delete(collect_garbage(call))


def status(call: Call) -> None:
    """Whether an ADD can be served now."""
    conf = TuningConf(call)
    try:
        conf.check_add()
        _ = conf.settings, conf.sysctl_paths
    except CniError as error:
        raise PluginNotAvailable(error.msg, error.details) from error


PLUGIN = Plugin("tuning", add=add, delete=delete, check=check, gc=gc, status=status)
