"""The first process of a lab's pid namespace: it makes the namespaces of the nodes and keeps them alive.

lab.py starts it in a network, mount and pid namespace of its own, with one end of a SOCK_SEQPACKET pair as stdin. Requests:

    node NAME [DIR ...]     fork a holder with a new network and mount namespace, in which the DIRs are empty directories
                            -> "ok PID", with descriptors of both namespaces
    name HOST PID NAME      bind the network namespace of PID to /run/netns/NAME in the mount namespace of HOST (a pid)
    forget HOST NAME        remove the bind mount and its file
    end PID                 kill a holder and wait for it

The answer is "ok" or "error" and a sentence. Every process of the lab is in this pid namespace. When the process that started the
lab ends, stdin ends and the kernel kills this process (PR_SET_PDEATHSIG); with pid 1 of a pid namespace every process in it is
killed (pid_namespaces(7)).
"""

import array
import ctypes
import fcntl
import os
import signal
import socket
import struct

CLONE_NEWNS = 0x00020000  # linux/sched.h
CLONE_NEWNET = 0x40000000
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000  # linux/mount.h
MNT_DETACH = 2
SIOCSIFFLAGS, IFF_UP = 0x8914, 0x1  # linux/sockios.h, linux/if.h
# A new namespace copies IPv4 sysctls from the machine's (devinet_init_net, net/ipv4/devinet.c), so all that matter are set.
SETTINGS = {
    "ipv4/ip_forward": "0",
    "ipv4/conf/all/rp_filter": "0",
    "ipv4/conf/default/rp_filter": "0",
    "ipv4/conf/all/route_localnet": "0",
    "ipv4/conf/default/route_localnet": "0",
    "ipv4/conf/all/arp_notify": "0",
    "ipv4/conf/default/arp_notify": "0",
    "ipv6/conf/all/forwarding": "0",
    "ipv6/conf/all/disable_ipv6": "0",
    "bridge/bridge-nf-call-iptables": "0",
    "bridge/bridge-nf-call-ip6tables": "0",
    "bridge/bridge-nf-call-arptables": "0",
}

libc = ctypes.CDLL(None, use_errno=True)


def checked(result: int, what: str) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    words = (source.encode(), target.encode(), kind.encode() or None)
    checked(libc.mount(*words, ctypes.c_ulong(flags), options.encode() or None), f"mount {source} on {target}")


def setns(fd: int, kind: int) -> None:
    checked(libc.setns(fd, kind), "setns")


def own_root() -> None:
    """Make this process's / the root of its mount namespace. In a chroot it is not.

    setns(CLONE_NEWNS) moves a process to the root of the mount namespace, whatever its root was before. A program that enters the
    lab that way would be outside of the chroot, with the machine's own /run. So / is mounted on top of that root, where setns(2)
    finds it. Mounts are made private first, so that nothing propagates to other mount namespaces: this one must be new.
    """
    try:
        namespace = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise OSError(error.errno, "there is no /proc here: mount -t proc proc /proc") from error
    here = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    setns(namespace, CLONE_NEWNS)
    mount("none", "/", flags=MS_REC | MS_PRIVATE)
    os.fchdir(here)
    if not is_root(here):
        mount(".", "/", flags=MS_BIND | MS_REC)
        setns(namespace, CLONE_NEWNS)
    os.chdir("/")
    os.close(here)
    os.close(namespace)


def is_root(directory: int) -> bool:
    """Whether a directory is /: the same folder through the same mount, since a chroot may be a bind mount of /."""
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return os.path.sameopenfile(directory, root) and mount_id(directory) == mount_id(root)
    except FileNotFoundError:  # / has no /proc, so it is another root
        return False
    finally:
        os.close(root)


def mount_id(fd: int) -> str:
    """The line with the ID of the mount through which a descriptor was opened (proc_pid_fdinfo(5))."""
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as lines:
        return next(line for line in lines if line.startswith("mnt_id:"))


def mount_sysfs() -> None:
    """Mount sysfs again: /sys/class/net shows the network namespace in which it was mounted. Control groups stay below it."""
    cgroup = os.open("/sys/fs/cgroup", os.O_PATH)
    mount("sysfs", "/sys", "sysfs")
    mount(f"/proc/self/fd/{cgroup}", "/sys/fs/cgroup", flags=MS_BIND | MS_REC)
    os.close(cgroup)


def cover(directory: str) -> None:
    """Mount a tmpfs with the same entries over a directory, so that an entry can be added without changing the disk."""
    below = os.open(directory, os.O_PATH)
    entries = list(os.scandir(directory))
    mount("lab", directory, "tmpfs", options="mode=755")
    for entry in entries:
        if entry.is_symlink():
            os.symlink(os.readlink(f"/proc/self/fd/{below}/{entry.name}"), entry.path)
        elif entry.is_dir() or entry.is_file():
            if entry.is_dir():
                os.mkdir(entry.path)
            else:
                os.close(os.open(entry.path, os.O_CREAT | os.O_WRONLY))
            mount(f"/proc/self/fd/{below}/{entry.name}", entry.path, flags=MS_BIND | MS_REC)
    os.close(below)


def provide_empty(directory: str) -> None:
    """Make `directory` exist and be empty in this mount namespace only."""
    missing: list[str] = []
    present = directory
    while not os.path.isdir(present):
        present, name = os.path.split(present)
        missing.insert(0, name)
    if missing:
        if mount_source("/proc/self/mountinfo", present) != "lab":
            cover(present)
        os.makedirs(directory)
    else:
        mount("lab", directory, "tmpfs", options="mode=755")


def mount_source(mountinfo: str, directory: str) -> str:
    """The source of the topmost mount on `directory`; "" if it is not a mount point (proc_pid_mountinfo(5))."""
    source = ""
    with open(mountinfo, encoding="utf-8") as lines:
        for line in lines:
            fields, _, tail = line.partition(" - ")
            if fields.split()[4] == directory:
                source = tail.split()[1]
    return source


def settle() -> None:
    """Prepare a new network namespace: known sysctls, loopback up. FileNotFoundError for a sysctl that this kernel does not have.

    A sysctl that has its value already is not written: for forwarding and disable_ipv6 the kernel takes RTNL, a lock of all
    namespaces, and a writer that does not get it repeats its system call (devinet_sysctl_forward, net/ipv4/devinet.c).
    """
    for name, value in SETTINGS.items():
        try:
            with open(f"/proc/sys/net/{name}", "r+", encoding="ascii") as file:
                if file.read().strip() != value:
                    file.seek(0)  # the kernel ignores a write at another position (sysctl_writes_strict)
                    file.write(value)
        except FileNotFoundError:
            if not name.startswith("bridge/"):  # without the module br_netfilter
                raise
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", IFF_UP))  # struct ifreq


def hold(ready: int, empty: list[str]) -> None:
    """The process that keeps the namespaces of one node alive until it is killed."""
    try:
        checked(libc.unshare(CLONE_NEWNET | CLONE_NEWNS), "unshare")
        settle()
        mount("none", "/", flags=MS_REC | MS_PRIVATE)
        mount_sysfs()
        mount("lab", "/run", "tmpfs", options="mode=755")
        os.mkdir("/run/netns")
        os.mkdir("/run/lock")
        for directory in empty:
            provide_empty(directory)
        os.chdir("/")
        os.write(ready, b"ok")
    except OSError as error:
        os.write(ready, f"error {error}".encode())
        os._exit(1)
    os.close(ready)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        signal.pause()


def node(channel: socket.socket, empty: list[str]) -> None:
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        channel.close()
        os.close(read)
        hold(write, empty)
    os.close(write)
    answer = os.read(read, 4096)
    os.close(read)
    if answer != b"ok":
        raise OSError(answer.decode().removeprefix("error ") or "the holder died")
    files = [os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY) for kind in ("net", "mnt")]
    channel.sendmsg([f"ok {pid}".encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))])
    for fd in files:
        os.close(fd)


def in_mounts_of(host: str, container: str, name: str) -> None:
    """Bind the container's network namespace to /run/netns/NAME, as `ip netns` does; without a container remove that."""
    home = os.open("/proc/self/ns/mnt", os.O_RDONLY)
    there = os.open(f"/proc/{host}/ns/mnt", os.O_RDONLY)
    path = f"/run/netns/{name}"
    setns(there, CLONE_NEWNS)
    try:
        if container:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o444))
            mount(f"/proc/{container}/ns/net", path, flags=MS_BIND)
        elif os.path.exists(path):
            libc.umount2(path.encode(), MNT_DETACH)
            os.unlink(path)
    finally:
        setns(home, CLONE_NEWNS)
        os.close(home)
        os.close(there)


def end(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ChildProcessError, ProcessLookupError):
        pass  # the kernel has collected it already


def serve(channel: socket.socket) -> None:
    while request := channel.recv(65536).decode().split(" "):
        try:
            match request:
                case ["node", _, *empty]:
                    node(channel, empty)
                    continue
                case ["name", host, container, name]:
                    in_mounts_of(host, container, name)
                case ["forget", host, name]:
                    in_mounts_of(host, "", name)
                case ["end", pid]:
                    end(int(pid))
                case _:
                    return  # an empty request: stdin has ended
            channel.send(b"ok")
        except OSError as error:
            channel.send(f"error {error}".encode())


def main() -> None:
    signal.signal(
        signal.SIGCHLD, signal.SIG_IGN
    )  # the kernel collects what ends; pid 1 also inherits the orphans of the lab
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(fileno=0) as channel:
        try:
            own_root()
            mount("proc", "/proc", "proc")
        except OSError as error:
            channel.send(f"error {error.strerror}".encode())
            return
        channel.send(b"ok")
        serve(channel)


if __name__ == "__main__":
    main()
