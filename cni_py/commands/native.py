"""Compiled launchers: cni_py/launcher.c, built where a C compiler is, and tried before it is installed."""

import functools
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import cni_py
from cni_py import version
from cni_py.commands.launchers import interpreter
from cni_py.commands.launchers import launcher as script_text
from cni_py.commands.report import LACKING, Failure
from cni_py.run import MODULES, NATIVE_END

AUTO, PYTHON, NATIVE = KINDS = ("auto", "python", "native")
SOURCE = Path(cni_py.__file__).with_name("launcher.c")
COMPILERS = ("cc", "gcc", "clang")
FLAGS = (("-O2", "-s", "-static"), ("-O2", "-s"))  # static starts faster; not every system has the library for it
FIELDS = b"cni-py launcher: fields"  # where launcher.c has its fields
FIELDS_SIZE = 16384
GONE = (
    "the interpreter of the plugin {plugin}, {python}, or its launcher in {scripts} does not exist any more, or was moved: "
    "run `cni-py install` again"
)
COMPILE_S = 60.0
TRY_S = 30.0


def program(kind: str) -> tuple[bytes, str]:
    """The compiled launcher, b"" for the one in Python, and words that say which. Failure if a compiled one cannot be had."""
    if kind == PYTHON:
        return b"", "in Python"
    found, words = _built()
    if not found and kind == NATIVE:
        raise Failure(f"no executable can be compiled: {words} (--launcher=python needs no compiler)", LACKING)
    return (found, f"compiled by {words}") if found else (b"", f"in Python: {words}")


@functools.cache
def _built() -> tuple[bytes, str]:
    """The program and its compiler; b"" and the reason."""
    compilers = [path for path in map(shutil.which, COMPILERS) if path]
    if not compilers:
        return b"", f"there is no C compiler ({', '.join(COMPILERS)})"
    why = ""
    with tempfile.TemporaryDirectory(prefix="cni-py-") as folder:
        for compiler, flags in ((compiler, flags) for flags in FLAGS for compiler in compilers):
            path = Path(folder, "launcher")
            words = [compiler, *flags, "-o", str(path), str(SOURCE)]
            try:
                done = subprocess.run(words, capture_output=True, text=True, timeout=COMPILE_S, check=False)
                why = why or f"{compiler} ended with {done.returncode}: {done.stderr.strip()[:200]}"
                if done.returncode == 0:
                    found = path.read_bytes()
                    why = _refuted(found, Path(folder))
                    if not why:
                        return found, compiler
            except OSError as error:
                hint = " (TMPDIR names another folder to try it in)" if isinstance(error, PermissionError) else ""
                why = f"{error.filename or path}: {error.strerror}{hint}"
            except subprocess.TimeoutExpired as error:
                why = str(error)
    return b"", why


def _refuted(found: bytes, folder: Path) -> str:
    """What is wrong with a compiled launcher, by starting it; "" if it answers as the one in Python does."""
    plugin, text = "bridge", script_text("bridge")
    scripts = folder / "scripts"
    scripts.mkdir(exist_ok=True)
    (scripts / plugin).write_bytes(text)
    path = folder / plugin
    path.write_bytes(launcher(found, plugin, scripts, text))
    path.chmod(0o755)
    done = subprocess.run([path], env={"CNI_COMMAND": "VERSION"}, capture_output=True, timeout=TRY_S, check=False)
    if done.stdout == version.reply(version.spoken_by(plugin)).encode() and done.returncode == 0:
        return ""
    return f"the compiled executable answers {done.stdout!r}, status {done.returncode}"


def launcher(compiled: bytes, plugin: str, scripts: Path, text: bytes) -> bytes:
    """A plugin's executable: the program with its fields, and at the end the text of the launcher in Python, one of `scripts`."""
    home = str(Path(cni_py.__file__).resolve().parent.parent)
    lost = GONE.format(plugin=plugin, python=interpreter(), scripts=scripts)
    gone = json.dumps({"cniVersion": "1.1.0", "code": 999, "msg": lost})
    fields = b"".join(
        os.fsencode(field) + b"\0" for field in (plugin, home, interpreter(), str(scripts), gone, *MODULES, "")
    )
    if len(fields) > FIELDS_SIZE:
        raise Failure(f"the paths of the interpreter and of the package are too long: {interpreter()}, {home}", LACKING)
    before, _, after = compiled.partition(FIELDS)
    return before + fields + after[len(fields) - len(FIELDS) :] + NATIVE_END + text
