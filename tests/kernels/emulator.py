"""A command of this checkout on another kernel: Debian's, in a virtual machine without a network, emulated in software.

    python3 -m tests.kernels.emulator bookworm -- .cache/venv/bin/pytest tests/plugins/test_children.py

The machine sees this machine's files below a tmpfs, so that what it writes ends with it. One folder is shared: the job, its
output and its exit status. The kernel is downloaded as a package and unpacked, never installed. It runs under QEMU's emulation
(TCG): a /dev/kvm may be there and not work.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.clients import fetch_debs

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "kernels"
SUITES = ("bookworm", "trixie")  # Linux 6.1 and 6.12
# What the first root needs before it can load anything else: files by 9p over virtio, a tmpfs over them
MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay", "virtio_rng")
PROGRAMS = {"qemu-system-x86_64": "qemu-system-x86", "modprobe": "kmod", "cpio": "cpio", "busybox": "busybox-static"}
MEMORY_MB = 3072
# A card on the PCI bus (module e1000), for tests of host-device. It leads to a socket that nobody connects to; its boot program
# is in another package.
CARD = (
    "-netdev",
    "stream,id=card,server=on,addr.type=unix,addr.path=@SCRATCH@/card",
    "-device",
    "e1000,netdev=card,romfile=",
)
TIME_S = 3600  # that a job may take
FETCH_S = 300  # for each step of downloading a kernel
LIFE_S = 120  # that the machine has to boot and to end


class Unavailable(Exception):
    """No such machine can be had here; the text says why."""


class Stuck(Exception):
    """The machine, or the job in it, did not come to an end."""


def kernel(suite: str) -> tuple[Path, str]:
    """The folder with a suite's kernel and its modules, and its version; downloads it once. Unavailable."""
    folder = CACHE / suite
    done = folder / "version"
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _download(suite, folder)
        (version,) = [one.name for one in (folder / "lib" / "modules").iterdir()]
        _run("depmod", "-b", str(folder), version)
        done.write_text(version)
    return folder, done.read_text()


def _download(suite: str, folder: Path) -> None:
    """Unpack the package that linux-image-amd64 depends on; apt gets lists and a cache of its own."""
    with tempfile.TemporaryDirectory(prefix="cni-py-kernel-") as scratch:
        Path(scratch).chmod(0o755)
        apt = fetch_debs.apart(Path(scratch), suite)
        _run("apt-get", *apt, "-qq", "update", cwd=scratch)
        lines = _run("apt-cache", *apt, "depends", "linux-image-amd64", cwd=scratch).splitlines()
        image = next(line.split()[-1] for line in lines if "linux-image-" in line and "Depends:" in line)
        print(f"cni-py: fetching {image} of Debian's {suite} (70 MB, once)", file=sys.stderr)
        _run("apt-get", *apt, "-qq", "download", image, cwd=scratch)
        (archive,) = Path(scratch).glob("*.deb")
        _run("dpkg-deb", "--extract", str(archive), str(folder))
    if (folder / "usr" / "lib" / "modules").exists():  # from Debian 13 on
        shutil.move(str(folder / "usr" / "lib"), str(folder / "lib"))


def _run(*words: str, cwd: str = "/") -> str:
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, check=False, timeout=FETCH_S)
    if done.returncode:
        raise Unavailable(f"{shlex.join(words)}: {done.stderr.strip()}")
    return done.stdout


INIT = """\
#!/bin/sh
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs devtmpfs /dev
while read -r module; do insmod "/modules/$module" 2>/dev/null; done </modules/order
options=trans=virtio,version=9p2000.L,msize=512000
mount -t 9p -o $options,cache=loose,ro root /lower || poweroff -f
mount -t tmpfs -o mode=755,size=80% tmpfs /over && mkdir /over/upper /over/work
mount -t overlay -o lowerdir=/lower,upperdir=/over/upper,workdir=/over/work overlay /new || poweroff -f
for folder in proc sys dev; do mount --move /$folder /new/$folder; done
mount -t tmpfs -o mode=755 tmpfs /new/run; mount -t tmpfs -o mode=1777 tmpfs /new/tmp
mkdir -p /new/dev/pts /new/dev/shm /new/run/share "/new/lib/modules/@VERSION@"
mount -t devpts devpts /new/dev/pts; mount -t tmpfs tmpfs /new/dev/shm
mount -t cgroup2 cgroup2 /new/sys/fs/cgroup
mount -t 9p -o $options,cache=none share /new/run/share || poweroff -f
mount --bind "/new@MODULES@" "/new/lib/modules/@VERSION@"
ln -s /proc/self/fd /new/dev/fd; ln -s fd/0 /new/dev/stdin; ln -s fd/1 /new/dev/stdout; ln -s fd/2 /new/dev/stderr
exec switch_root /new /usr/bin/python3 /run/share/init.py
"""

# Process 1 of the machine: runs the job, and collects every process that ends. The exit status goes into the shared folder.
FIRST_PROCESS = """\
import ctypes, os, stat
os.chdir("/")
os.makedirs("/dev/net")  # as kmod-static-nodes.service of a host does: whoever opens it makes the kernel load tun
os.mknod("/dev/net/tun", stat.S_IFCHR | 0o666, os.makedev(10, 200))
job = os.fork()
if job == 0:
    os.setsid()
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    os.execve("/bin/sh", ["sh", "/run/share/job"], {"PATH": path, "HOME": "/root", "LC_ALL": "C.UTF-8", "TERM": "dumb"})
while True:
    pid, status = os.wait()
    if pid == job:
        break
with open("/run/share/status", "w") as file:
    file.write(str(os.waitstatus_to_exitcode(status)))
os.sync()
ctypes.CDLL(None).reboot(0x4321FEDC)  # LINUX_REBOOT_CMD_POWER_OFF: reboot(2)
"""


def initramfs(folder: Path, version: str, target: Path) -> None:
    """Write the first root: busybox, the modules in the order in which they are loaded, and INIT."""
    with tempfile.TemporaryDirectory(prefix="cni-py-initramfs-") as scratch:
        root = Path(scratch)
        for name in ("bin", "dev", "proc", "sys", "lower", "over", "new", "modules"):
            (root / name).mkdir()
        shutil.copy(shutil.which("busybox") or "", root / "bin" / "busybox")
        for applet in ("sh", "mount", "insmod", "mkdir", "switch_root", "poweroff", "ln"):
            (root / "bin" / applet).symlink_to("busybox")
        order = []
        for name in MODULES:
            lines = _run("modprobe", "-d", str(folder), "-S", version, "--show-depends", name).splitlines()
            order += [line.split()[1] for line in lines if line.startswith("insmod ")]
        names = list(dict.fromkeys(order))
        for path in names:
            _copy_module(Path(path), root / "modules")
        (root / "modules" / "order").write_text("".join(f"{Path(path).name.removesuffix('.xz')}\n" for path in names))
        init = root / "init"
        init.write_text(
            INIT.replace("@VERSION@", version).replace("@MODULES@", str(folder / "lib" / "modules" / version))
        )
        init.chmod(0o755)
        listing = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
        with target.open("wb") as out:
            words = ["cpio", "--quiet", "-o", "-H", "newc"]
            subprocess.run(words, cwd=root, input=listing.encode(), stdout=out, check=True, timeout=60)


def _copy_module(path: Path, folder: Path) -> None:
    if path.suffix == ".xz":  # busybox's insmod does not unpack them
        import lzma

        (folder / path.stem).write_bytes(lzma.decompress(path.read_bytes()))
    else:
        shutil.copy(path, folder)


def run(suite: str, command: str, *, files: Path | None = None, time_s: float = TIME_S) -> int:
    """Run a shell command there, in this checkout; its output goes to stdout. Its exit status. Unavailable, Stuck.

    Files that it writes to /run/share are copied to `files`.
    """
    lacking = [package for program, package in PROGRAMS.items() if shutil.which(program) is None]
    if lacking:
        raise Unavailable(f"Debian's packages {', '.join(lacking)} are needed")
    folder, version = kernel(suite)
    (image,) = (folder / "boot").glob("vmlinuz-*")
    with tempfile.TemporaryDirectory(prefix="cni-py-emulator-") as scratch:
        share = Path(scratch, "share")
        share.mkdir()
        (share / "init.py").write_text(FIRST_PROCESS)
        (share / "job").write_text(f"exec </dev/null >/dev/ttyS1 2>&1\ncd {shlex.quote(str(ROOT))}\n{command}\n")
        first = Path(scratch, "initramfs")
        initramfs(folder, version, first)
        words = [
            *("qemu-system-x86_64", "-nodefaults", "-nographic", "-no-reboot", "-monitor", "none"),
            *(
                "-serial",
                f"file:{share}/console",
                "-serial",
                "stdio",
            ),  # the kernel's own messages, and the job's output
            *("-accel", "tcg,thread=multi", "-cpu", "max", "-smp", str(os.cpu_count() or 1), "-m", str(MEMORY_MB)),
            *("-kernel", str(image), "-initrd", str(first), "-device", "virtio-rng-pci", "-nic", "none"),
            *(word.replace("@SCRATCH@", scratch) for word in CARD),
            *("-append", "console=ttyS0 loglevel=3 panic=-1 mitigations=off"),
            *("-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap"),
            *("-device", "virtio-9p-pci,fsdev=root,mount_tag=root"),
            *("-fsdev", f"local,id=share,path={share},security_model=none"),
            *("-device", "virtio-9p-pci,fsdev=share,mount_tag=share"),
        ]
        try:
            subprocess.run(words, stdin=subprocess.DEVNULL, check=False, timeout=time_s + LIFE_S)
        except subprocess.TimeoutExpired:
            raise Stuck(f"the machine with {version} did not end within {time_s + LIFE_S:g} s") from None
        status = share / "status"
        if files is not None:
            shutil.copytree(share, files, dirs_exist_ok=True)
        if not status.exists():
            raise Stuck(f"the machine with {version} ended without a result")
        return int(status.read_text())


def main() -> int:
    """One command on one kernel."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("suite", choices=SUITES, help="of Debian, whose kernel it is")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="a command, run in this checkout")
    options = parser.parse_args()
    words = options.command[1:] if options.command[:1] == ["--"] else options.command
    try:
        return run(options.suite, shlex.join(words) if len(words) > 1 else "".join(words))
    except (Unavailable, Stuck, OSError, subprocess.SubprocessError) as error:
        print(f"emulator: {error}", file=sys.stderr)
        return 3


if __name__ == "__main__":
    sys.exit(main())
