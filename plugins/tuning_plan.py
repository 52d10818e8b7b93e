"""tuning's plan: what to set, each with what it is now; and putting things back from the Go plugin's file.

Apart from the plugin, which with nothing to set does not load it: that is how most runtimes configure it.
"""

from cni_py.attachment.call import Call
from cni_py.attachment.engine import readable
from cni_py.errors import CniError, os_error
from cni_py.interface.tuning import SaveSettings, TuneLink, TuneSysctl, put_back, saved_values
from cni_py.kernel import linksettings, sysctl
from cni_py.plugins.tuning_conf import TuningConf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.attachment.engine import Op


def plan(call: Call, conf: TuningConf) -> "list[Op]":
    """Everything to set, each with what it is now."""
    netns = call.kernel.container_cookie
    paths, wanted = conf.sysctl_paths, conf.settings
    with call.kernel.in_container():
        before = [sysctl_now(path) for path, _ in paths]
    steps: list[Op] = [
        TuneSysctl(key=path, value=value, before=now, netns=netns)
        for (path, value), now in zip(paths, before, strict=True)
    ]
    if not wanted:
        return steps
    current = linksettings.read(call.kernel.container, call.ifname)
    if current is None and not call.dry_run:  # in a dry run the plugin before has not made it
        raise CniError(f'failed to get "{call.ifname}"', "the container has no such interface")
    earlier = values_before(call, netns)
    values = {**dict.fromkeys(wanted, ""), **(current or {}), **earlier}
    if current is not None:
        saved = {setting: value for setting, value in values.items() if setting in {*wanted, *earlier}}
        steps.append(SaveSettings(path=conf.saved_path, before=saved))
    return steps + [
        TuneLink(ifname=call.ifname, setting=setting, value=value, before=values[setting], netns=netns)
        for setting, value in wanted.items()
    ]


def sysctl_now(path: str) -> str:
    """What to write to get the present value back; "" where it cannot be read."""
    try:
        return sysctl.read(path) or "\n"
    except PermissionError:
        return ""
    except OSError as error:
        raise os_error(f"cannot read sysctl net/{path}", error) from error


def values_before(call: Call, netns: int) -> dict[str, str]:
    """The settings before an earlier ADD of this attachment that still stands: those that DEL is to bring back."""
    ops = [op for op in readable(call.executor.before or ()) if isinstance(op, TuneLink)]
    ours = [op for op in reversed(ops) if (op.ifname, op.netns) == (call.ifname, netns)]
    return {op.setting: op.before for op in ours}


def restore(call: Call, text: bytes) -> None:
    """Set the interface to what the Go plugin's file says, where the namespace is still there."""
    if call.kernel.has_container:
        put_back(call.kernel, call.ifname, saved_values(text))
