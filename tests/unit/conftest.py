"""`@pytest.mark.netns`: the test runs in a child process with a network and a mount namespace of its own.

The machine's own namespace is never touched, and whatever a test makes goes with its process. Such a test takes no fixtures.
"""

import importlib.util
import os
import subprocess
import sys

import pytest

from tests.lacking import need_root

CHILD = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("scenario", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
getattr(module, sys.argv[2])(**eval(sys.argv[3]))
"""
LIMIT_S = 60


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "netns: runs in a child process with namespaces of its own; needs root")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a marked test elsewhere; True says that it has been run."""
    if pyfuncitem.get_closest_marker("netns") is None:
        return None
    need_root()
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    spec = importlib.util.find_spec("cni_py")
    assert spec is not None
    assert spec.origin is not None
    top = os.path.dirname(os.path.dirname(spec.origin))  # the child tests the same copy, installed or not
    done = subprocess.run(
        [
            "unshare",
            "-n",
            "-m",
            sys.executable,
            "-c",
            CHILD,
            str(pyfuncitem.path),
            pyfuncitem.originalname,
            repr(arguments),
        ],
        env={**os.environ, "PYTHONPATH": top},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    if done.returncode != 0:
        pytest.fail(done.stdout + done.stderr, pytrace=False)
    return True
