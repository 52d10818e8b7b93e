"""The launcher, a plugin's executable: a few lines of Python that load the installed package and name the plugin.

The environment that it needs can be lost in two ways:

    the package is gone (pip uninstall, a removed or moved virtual environment)    the launcher prints a CNI error object
    the interpreter is gone                                                        the kernel refuses to start the launcher

Only a first line with /bin/sh could answer in the second case, but a shell before Python costs each call about a millisecond.
The case is made rare instead: the first line names the interpreter to which a virtual environment links, not the link.
"""

import json
import os
import sys
from pathlib import Path

import cni_py
from cni_py.commands import images
from cni_py.commands.report import LACKING, Failure
from cni_py.run import LAUNCHER_MAX

START = b"from cni_py.run import main"  # a line of every launcher that was ever installed
SHEBANG_MAX = 127  # bytes; BINPRM_BUF_SIZE of older kernels, linux/binfmts.h
LINKS_MAX = 40  # as the kernel follows

# The package's folder comes last on the path, so that nothing in it can replace a module of the standard library.
# The code for a package that cannot be loaded is a string: it is compiled only when it is needed.
BODY = """\
import marshal, posix, sys
sys.path.append({home!r})
LOST = \"\"\"
if issubclass(lost[0], Exception):
    from json import dumps
    msg = 'the Python package that the plugin {plugin} runs was removed, moved or damaged: ' + str(lost[1])
    details = sys.argv[0] + ' loads it from ' + sys.path[-1] + '; reinstall it, or run `cni-py install` from another environment'
    print(dumps({{'cniVersion': '1.1.0', 'code': 999, 'msg': msg, 'details': details}}))
else:
    sys.__excepthook__(*lost)
\"\"\"
sys.excepthook = lambda *lost: exec(LOST)
try:
    from _frozen_importlib_external import MAGIC_NUMBER
    fd = posix.open({image!r}, posix.O_RDONLY | posix.O_CLOEXEC)
    head, state, owner = posix.pread(fd, {head_max}, 0), posix.fstat(fd), posix.stat({package!r}).st_uid
    if (
        head[:12] == MAGIC_NUMBER + state.st_size.to_bytes(8, 'little') and fd > 2
        and state.st_uid in (0, owner) and state.st_mode & 0o170022 == 0o100000
    ):
        code, *index = marshal.loads(head[12:])
        scope = {{'__name__': 'cni_py.image'}}
        exec(code, scope)
        scope['start'](fd, {home!r} + '/', state.st_size, *index)
    else:
        posix.close(fd)
except Exception:
    pass
{start}
main({plugin!r})
"""
GONE = "the interpreter of the plugin {plugin}, {python}, does not exist any more: run `cni-py install` from another environment"


def launcher(plugin: str) -> bytes:
    """The text of a plugin's executable. Failure 3 if the paths cannot be written into it.

    -I and -S ignore the user's environment and the site module, which also halves the interpreter's start-up time.
    """
    home = str(Path(cni_py.__file__).resolve().parent.parent)
    body = os.fsencode(
        BODY.format(
            home=home,
            package=str(images.PACKAGE),
            image=str(images.place()),
            head_max=images.HEAD_MAX,
            plugin=plugin,
            start=START.decode(),
        )
    )
    path = interpreter()
    python = os.fsencode(path)
    if not python or b"\\" in python or b"\n" in python:
        raise Failure(f"a script cannot name this interpreter: {path!r}", LACKING)
    first = b"#!" + python + b" -IS"
    if any(space in python for space in b" \t") or len(first) > SHEBANG_MAX:
        first = _by_shell(plugin, path)
    text = first + b"\n" + body
    if len(text) > LAUNCHER_MAX:
        raise Failure(f"the paths of the interpreter and of the package are too long: {path}, {home}", LACKING)
    return text


def interpreter() -> str:
    """The interpreter outside of the virtual environment, which may be moved or removed later."""
    path = sys.executable
    if sys.prefix == sys.base_prefix:
        return path
    for _ in range(LINKS_MAX):
        if not path.startswith(f"{sys.prefix}/") or not os.path.islink(path):
            break
        path = os.path.join(os.path.realpath(os.path.dirname(path)), os.readlink(path))
    return path if os.access(path, os.X_OK) else sys.executable


def _by_shell(plugin: str, path: str) -> bytes:
    """First lines for an interpreter that a #! line cannot name (blanks, length): commands for sh, a string for Python."""
    python = _quoted(os.fsencode(path))
    error = json.dumps({"cniVersion": "1.1.0", "code": 999, "msg": GONE.format(plugin=plugin, python=path)})
    missing = b"[ -x " + python + b" ] || { printf '%s\\n' " + _quoted(error.encode()) + b"; exit 1; }"
    return b"#!/bin/sh\n''':'\n" + missing + b"\nexec " + python + b' -IS "$0" "$@"\n\'\'\''


def _quoted(word: bytes) -> bytes:
    """One word for sh."""
    return b"'" + word.replace(b"'", b"'\"'\"'") + b"'"
