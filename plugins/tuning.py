"""tuning: sysctls of the container, and MAC, MTU, promiscuous and all-multicast mode and queue length of its interface.

    ADD    sysctls, then the interface; what it was before goes to a file and to the record; result: prevResult with the MAC
    DEL    the interface as it was, where the namespace still exists; an error would keep the plugins before from their DEL
    CHECK  the plan of ADD against the kernel
    GC     attachments of this network that the runtime no longer knows
    STATUS whether the administrator's list allows the sysctls

Example configuration: conf/tuning.conflist. With nothing to set it passes the result on. Sysctls stay after DEL, since those of
the whole container may be wanted by another network of its; a failed ADD puts them back too.
"""

import os

from cni_py import files
from cni_py.attachment.call import Call, Plugin, collect_garbage
from cni_py.errors import CniError, InvalidNetworkConfig, PluginNotAvailable, warn
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
    _ = call.kernel.container_fd  # a namespace there must be, also with nothing to set
    if wanted or conf.sysctl_paths:
        from cni_py.plugins.tuning_plan import plan

        call.begin()  # first: what an ADD that died here changed is put back before we look
        call.apply(plan(call, conf))
    for interface in earlier.interfaces:
        if interface.name == call.ifname:
            interface.mac = wanted.get("mac", interface.mac)
            if interface.mtu:  # where somebody said one
                interface.mtu = conf.mtu or interface.mtu
    return earlier


def earlier_result(call: Call) -> "Result":
    """The result of the plugin before, which there must be."""
    earlier = prev_result(call.conf)
    if earlier is None:
        raise InvalidNetworkConfig("Required prevResult missing")
    return earlier


def delete(call: Call) -> None:
    """Put back what was, as far as there is anything to put it to."""
    for failure in call.run_all(Call.undo_recorded, restore_saved):
        warn(f"tuning: {failure}")


def restore_saved(call: Call) -> None:
    """Undo an ADD that has no record of ours: the Go plugin's. Its file goes, also when the namespace is gone."""
    path = saved_path(call)
    try:
        text = files.read(path)
    except FileNotFoundError:
        return
    os.unlink(path)
    from cni_py.plugins.tuning_plan import restore

    restore(call, text)


def check(call: Call) -> None:
    """Compare with the kernel."""
    from cni_py.plugins.tuning_plan import plan

    conf = TuningConf(call)
    earlier_result(call)
    call.check_plan(plan(call, conf))


def gc(call: Call) -> None:
    """Take away what stale attachments left."""
    call.finish_delete(collect_garbage(call))


def status(call: Call) -> None:
    """Whether an ADD can be served now."""
    try:
        TuningConf(call).check_add()
    except CniError as error:
        raise PluginNotAvailable(error.msg, error.details) from error


PLUGIN = Plugin("tuning", add=add, delete=delete, check=check, gc=gc, status=status)
