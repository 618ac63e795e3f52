"""Code that means harm, and what must come of it."""

from dataclasses import dataclass

# Of a syscall that must not work. Whoever prints "got in" has won.
_SYSCALL = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    answer = libc.syscall(number, *arguments)
    print("got in" if answer >= 0 else os.strerror(ctypes.get_errno()))
"""
_ENDLESS = ("timeout",)


@dataclass(frozen=True)
class Attack:
    name: str
    code: str
    ends: tuple[str, ...] = ("ok", "error")  # the cell's statuses that are right
    says: str = ""  # a pattern that its output must match
    timeout_s: float = 20


BOMBS = [
    Attack(
        "forks without end",
        "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass",
        ends=("timeout", "died", "error"),
        timeout_s=3,
    ),
    Attack(
        "processes in sessions of their own that ignore every signal",
        """
import os, signal, time
for _ in range(1000):
    try:
        if os.fork() == 0:
            os.setsid()
            for number in range(1, 32):
                try:
                    signal.signal(number, signal.SIG_IGN)
                except (OSError, ValueError):
                    pass
            while True:
                time.sleep(1)
    except OSError as full:
        print("full", full)
        break
while True:
    time.sleep(1)
""",
        ends=("timeout", "died", "error"),
        timeout_s=3,
    ),
    Attack(
        "threads without end",
        """
import threading, time
started = []
try:
    while True:
        one = threading.Thread(target=time.sleep, args=(3600,), daemon=True)
        one.start()
        started.append(one)
except RuntimeError as full:
    print("full after", len(started) > 10, full)
""",
        says="full after True",
    ),
    Attack(
        "memory without end",
        "taken = []\nwhile True:\n    taken.append(bytearray(16 * 1024 * 1024))",
        ends=("died", "error"),
        timeout_s=60,
    ),
    Attack(
        "memory of many processes",
        """
import os, time
for _ in range(40):
    if os.fork() == 0:
        taken = bytearray(64 * 1024 * 1024)
        for at in range(0, len(taken), 4096):
            taken[at] = 1
        time.sleep(30)
        os._exit(0)
time.sleep(2)
print("lived")
""",
        ends=("ok", "died", "error"),
        timeout_s=60,
    ),
    Attack("a list of a thousand million", "print(len([0] * 10**9))", ends=("died", "error")),
    Attack("a number with too many digits", "print(len(str(9 ** 9 ** 9)))", _ENDLESS, timeout_s=2),
    Attack(
        "stack without end",
        "import sys\nsys.setrecursionlimit(10**9)\ndef f():\n    f()\nf()",
        ends=("died", "error"),
    ),
    Attack(
        "a full disk",
        """
try:
    with open("/mnt/data/flood", "wb") as flood:
        while True:
            flood.write(bytes(1024 * 1024))
except OSError as full:
    print("full:", full.strerror)
""",
        says="full: (No space left|File too large)",
        timeout_s=60,
    ),
    Attack(
        "a full /tmp and /dev/shm",
        """
import os
for folder in ("/tmp", "/dev/shm"):
    try:
        with open(folder + "/flood", "wb") as flood:
            while True:
                flood.write(bytes(1024 * 1024))
    except OSError as full:
        print(folder, "full:", full.strerror)
""",
        says="/tmp full: .*",
        timeout_s=60,
    ),
    Attack(
        "no inode left",
        """
made = 0
try:
    while True:
        open(f"/mnt/data/{made}", "w").close()
        made += 1
except OSError as full:
    print("full after", made > 10, full.strerror)
""",
        says="full after True No space left",
        timeout_s=60,
    ),
    Attack(
        "folders in folders without end",
        """
import os
depth = 0
try:
    while True:
        os.mkdir("d")
        os.chdir("d")
        depth += 1
except OSError as full:
    print("full after", depth > 10)
""",
        says="full after True",
        timeout_s=60,
    ),
    Attack(
        "descriptors without end",
        """
import os
opened = []
try:
    while True:
        opened.append(os.open("/dev/null", os.O_RDONLY))
except OSError as full:
    print("full after", len(opened) > 10, full.strerror)
""",
        says="full after True Too many open files",
    ),
]

FLOODS = [
    Attack("prints without end", "while True:\n    print('x' * 1000)", _ENDLESS, timeout_s=3),
    Attack(
        "bytes on descriptor 1 without end",
        "import os\nwhile True:\n    os.write(1, bytes(65536))",
        _ENDLESS,
        timeout_s=3,
    ),
    Attack(
        "a subprocess that prints without end",
        "import subprocess\nsubprocess.run(['yes'])",
        _ENDLESS,
        timeout_s=3,
    ),
    Attack("200 MB in one print", "print('x' * 200_000_000)"),
    Attack("a result of 100 MB", "'x' * 100_000_000"),
    Attack("a display of 100 MB", "display('x' * 100_000_000)"),
    Attack("displays without end", "while True:\n    display('x' * 10_000)", _ENDLESS, timeout_s=3),
    Attack("an exception of 100 MB", "raise ValueError('x' * 100_000_000)", ("error",)),
    Attack(
        "a chain of exceptions",
        """
def fall(depth):
    try:
        raise ValueError("x" * 10_000)
    except ValueError:
        if depth:
            fall(depth - 1)
        raise KeyError("y" * 10_000)
fall(200)
""",
        ("error",),
        timeout_s=60,
    ),
    Attack(
        "a thousand figures",
        """
import matplotlib.pyplot as plt
import warnings
warnings.simplefilter("ignore")
for _ in range(1000):
    plt.figure(figsize=(1, 1))
    plt.plot([1, 2])
    plt.show()
""",
        ends=("ok", "timeout", "error"),
        timeout_s=30,
    ),
    Attack(
        "an image of a gigapixel",
        "from PIL import Image\ndisplay(Image.new('1', (40000, 25000)))",
        ends=("ok", "error", "died", "timeout"),
        timeout_s=30,
    ),
    Attack(
        "a repr that never ends",
        "class Long:\n    def __repr__(self):\n        while True:\n            pass\nLong()",
        _ENDLESS,
        timeout_s=2,
    ),
    Attack("no text at all", "import os\nos.write(1, bytes(range(256)) * 100)"),
]

LOOPS = [
    Attack("while True", "while True:\n    pass", _ENDLESS, timeout_s=2),
    Attack(
        "a loop that catches everything",
        "while True:\n    try:\n        while True:\n            pass\n"
        "    except BaseException:\n        pass",
        _ENDLESS,
        timeout_s=2,
    ),
    Attack(
        "an ignored SIGINT",
        "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True:\n    pass",
        _ENDLESS,
        timeout_s=2,
    ),
    Attack(
        "blocked signals",
        "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\n"
        "while True:\n    pass",
        _ENDLESS,
        timeout_s=2,
    ),
    Attack("a sleep", "import time\ntime.sleep(3600)", _ENDLESS, timeout_s=2),
    Attack("a loop in C", "sum(iter(int, 1))", _ENDLESS, timeout_s=2),
    Attack(
        "a regular expression",
        "import re\nre.match(r'(a+)+$', 'a' * 60 + 'b')",
        _ENDLESS,
        timeout_s=2,
    ),
    Attack(
        "a stop of itself",
        "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
        _ENDLESS,
        timeout_s=2,
    ),
    Attack("waits for input", "input('your password? ')", ("error",)),
    Attack(
        "a thread that holds on",
        "import threading\nthreading.Thread(target=lambda: [None for _ in iter(int, 1)]).start()\n"
        "while True:\n    pass",
        _ENDLESS,
        timeout_s=2,
    ),
    Attack(
        "exit handlers that never end",
        "import atexit, sys\natexit.register(sum, iter(int, 1))\nsys.exit()",
        ends=("ok", "error", "died", "timeout"),
        timeout_s=3,
    ),
]

NETWORK = [
    Attack(
        "connections to anywhere",
        """
import socket
for address in ("1.1.1.1", "172.17.0.1", "169.254.169.254", "192.168.0.1"):
    for port in (53, 80, 443, 2375, 5432):
        try:
            socket.create_connection((address, port), timeout=1).close()
            print("got in", address, port)
        except OSError as refused:
            print(refused.strerror)
""",
        says="unreachable|not permitted",
    ),
    Attack(
        "datagrams and names",
        """
import socket
try:
    print("got in", socket.getaddrinfo("example.com", 80))
except OSError as refused:
    print("no name:", refused)
one = None
try:
    one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    one.sendto(b"x", ("1.1.1.1", 53))
    print("got in")
except OSError as refused:
    print(refused.strerror)
""",
        says="no name",
    ),
    Attack(
        "other networks than the usual ones",
        """
import socket
for family in ("AF_VSOCK", "AF_ALG", "AF_PACKET", "AF_NETLINK", "AF_BLUETOOTH", "AF_TIPC"):
    try:
        socket.socket(getattr(socket, family), socket.SOCK_RAW).close()
        print("got in", family)
    except (OSError, AttributeError) as refused:
        print(family, refused)
for kind in (socket.SOCK_RAW,):
    for protocol in (socket.IPPROTO_ICMP, socket.IPPROTO_RAW):
        try:
            socket.socket(socket.AF_INET, kind, protocol).close()
            print("got in", protocol)
        except OSError as refused:
            print(refused.strerror)
""",
    ),
    Attack(
        "vsock of every type",
        """
import socket
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
    try:
        socket.socket(40, kind).close()
        print("got in", kind)
    except OSError as refused:
        print(refused.strerror)
""",
    ),
    Attack(
        "sockets and folders of the machine",
        """
import os
for path in ("/var/run/docker.sock", "/run/docker.sock", "/run/containerd", "/host",
             "/proc/kcore",
             "/sys/fs/cgroup/release_agent", "/sys/kernel/debug", "/dev/mem", "/dev/kmsg",
             "/dev/sda"):
    try:
        os.open(path, os.O_RDONLY)
        if not os.path.isdir(path):
            print("got in", path)
    except OSError as refused:
        print(path, refused.strerror)
""",
    ),
]

DRIVER = [
    Attack(
        "a look into the driver",
        """
import os
for name in ("mem", "environ", "maps", "fd", "cwd", "root", "exe", "auxv", "stack"):
    path = f"/proc/1/{name}"
    try:
        if name in ("fd",):
            print("got in", os.listdir(path))
        elif name in ("cwd", "root", "exe"):
            print("got in", os.readlink(path))
        else:
            print("got in", len(open(path, "rb").read(10)))
    except OSError as refused:
        print(name, refused.strerror)
""",
        says="mem Permission denied",
    ),
    Attack(
        "signals to the driver",
        """
import os, signal
for number in range(1, 65):
    if number in (32, 33):
        continue
    try:
        os.kill(1, number)
    except OSError as refused:
        print(number, refused.strerror)
print("all sent")
""",
        says="all sent",
    ),
    Attack(
        "a kill of everybody",
        "import os, signal\nos.kill(-1, signal.SIGKILL)",
        ends=("ok", "error", "died"),
    ),
    Attack(
        "a stop of everybody",
        "import os, signal\nos.kill(-1, signal.SIGSTOP)\nprint('went on')",
        ends=("ok", "error", "timeout", "died"),
        timeout_s=3,
    ),
    Attack(
        "ptrace of the driver and reading its memory",
        _SYSCALL
        + """
call(101, 16, 1, 0, 0)        # ptrace(PTRACE_ATTACH, 1)
call(101, 0x4206, 1, 0, 0)    # PTRACE_SEIZE
class Vector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
buffer = ctypes.create_string_buffer(16)
local = Vector(ctypes.addressof(buffer), 16)
remote = Vector(0x400000, 16)
call(310, 1, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)  # process_vm_readv
call(311, 1, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)  # process_vm_writev
call(438, 3, 1, 0)            # pidfd_getfd
call(312, 1, 1, 0, 0, 0)      # kcmp
""",
        says="not permitted|not implemented|No such process|Bad file",
    ),
    Attack(
        "forged frames on every descriptor",
        """
import json, os, struct
head = json.dumps({"op": "done", "id": 1, "status": "ok", "restarted": False}).encode()
forged = struct.pack(">II", len(head), 0) + head
for descriptor in range(0, 256):
    stream = b"\\x01\\x00\\x00\\x00" + struct.pack(">I", len(forged)) + forged
    for piece in (forged, stream, b"\\xff" * 64):
        try:
            os.set_blocking(descriptor, False)
            os.write(descriptor, piece)
        except OSError:
            pass
print("all written")
""",
        ends=("ok", "error", "died"),
    ),
    Attack(
        "forged frames through other processes' descriptors",
        """
import os
for process in os.listdir("/proc"):
    if process.isdigit():
        for descriptor in range(64):
            try:
                with open(f"/proc/{process}/fd/{descriptor}", "wb", buffering=0) as file:
                    os.set_blocking(file.fileno(), False)
                    file.write(b"\\x00" * 64)
            except OSError:
                pass
print("all tried")
""",
        ends=("ok", "error", "died"),
    ),
    Attack(
        "every descriptor closed",
        "import os\nos.closerange(0, 65536)\nprint('still here')",
        ends=("ok", "error", "died"),
    ),
    Attack(
        "other builtins",
        """
import builtins, json, os, struct, sys
def broken(*_, **__):
    raise SystemError("patched")
is_callable, get, put = callable, getattr, setattr
for module in (sys, struct, json, os, builtins):
    for name in [*vars(module)]:
        if is_callable(get(module, name)) and not name.startswith("__"):
            try:
                put(module, name, broken)
            except Exception:
                pass
""",
        ends=("ok", "error", "died", "timeout"),
        timeout_s=3,
    ),
    Attack(
        "a builtin that every cell needs",
        "import builtins\nfor name in ('len', 'isinstance', 'compile', 'exec', 'print'):\n"
        "    setattr(builtins, name, None)",
        ends=("ok", "error", "died"),
    ),
    Attack(
        "limits for the driver",
        """
import resource
for process in (1, 0):
    for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_AS, resource.RLIMIT_CPU):
        try:
            print(process, resource.prlimit(process, limit, (0, 0)))
            if process == 1:
                print("got in")
        except OSError as refused:
            print(refused.strerror)
""",
        ends=("ok", "error", "died"),
        says="not permitted",
    ),
    Attack("another shell", "get_ipython().run_cell = None", ends=("ok", "error", "died")),
    Attack("os._exit", "import os\nos._exit(0)", ("died",)),
    Attack("os.abort", "import os\nos.abort()", ("died",)),
    Attack("a segmentation fault", "import ctypes\nctypes.string_at(0)", ("died",)),
    Attack("sys.exit", "import sys\nsys.exit(3)", ends=("ok", "error", "died")),
    Attack(
        "a child that answers for its parent",
        "import os\nif os.fork() == 0:\n    print('child')\nelse:\n    print('parent')",
        ends=("ok", "died"),
    ),
    Attack(
        "a parent that leaves its child",
        "import os\nif os.fork():\n    os._exit(0)\nprint('child goes on')",
        ends=("ok", "died"),
    ),
    Attack(
        "a new program in the worker's place",
        "import os\nos.execv('/bin/sh', ['sh', '-c', 'echo replaced; exec sleep 60'])",
        ends=("ok", "died", "timeout"),
        timeout_s=3,
    ),
]

KERNEL = [
    Attack(
        "mounts, namespaces, roots",
        _SYSCALL
        + """
call(165, b"none", b"/mnt", b"tmpfs", 0, 0)   # mount
call(166, b"/mnt/data", 2)                     # umount2
call(272, 0x10000000)                          # unshare(CLONE_NEWUSER)
call(272, 0x00020000)                          # unshare(CLONE_NEWNS)
call(272, 0x40000000)                          # unshare(CLONE_NEWNET)
call(308, 0, 0)                                # setns
call(161, b"/tmp")                             # chroot
call(155, b"/tmp", b"/tmp")                    # pivot_root
call(56, 0x10000000 | 17, 0, 0, 0, 0)          # clone(CLONE_NEWUSER)
call(428, -100, b"/", 1)                       # open_tree
call(429, 0, b"", 0, b"", 0)                   # move_mount
call(430, b"tmpfs", 0)                         # fsopen
call(442, -100, b"/", 0, 0, 0)                 # mount_setattr
""",
        says="not permitted",
    ),
    Attack(
        "what only the machine's owner may",
        _SYSCALL
        + """
call(321, 0, 0, 0)                             # bpf
call(250, 0, 0, 0, 0, 0)                       # keyctl
call(248, b"user", b"name", b"x", 1, -1)       # add_key
call(249, b"user", b"name", 0, 0)              # request_key
call(298, 0, 0, -1, -1, 0)                     # perf_event_open
call(323, 1)                                   # userfaultfd
call(425, 1, 0)                                # io_uring_setup
call(304, -100, 0, 0)                          # open_by_handle_at
call(175, 0, 0, 0)                             # init_module
call(313, 0, 0, 0)                             # finit_module
call(246, 0, 0, 0, 0)                          # kexec_load
call(169, 0xfee1dead, 672274793, 0x4321fedc, 0)  # reboot
call(167, b"/tmp", 0)                          # swapon
call(170, b"name", 4)                          # sethostname
call(164, 0, 0)                                # settimeofday
call(103, 3, 0, 0)                             # syslog
call(105, 0)                                   # setuid(0)
call(106, 0)                                   # setgid(0)
call(133, b"/tmp/device", 0o020666, 0x101)     # mknod
call(173, 0)                                   # ioperm
call(172, 3)                                   # iopl
""",
        says="not permitted",
    ),
    Attack(
        "writes outside its folders",
        """
import os
for path in ("/etc/passwd", "/opt/venv/x", "/usr/bin/x", "/x", "/proc/sys/kernel/core_pattern",
             "/proc/sysrq-trigger", "/sys/fs/cgroup/memory/x", "/proc/1/oom_score_adj",
             "/proc/self/uid_map", "/var/tmp/x", "/run/x", "/root/x", "/home/x"):
    try:
        open(path, "a").close()
        with open(path, "w") as file:
            file.write("1")
        print("got in", path)
    except OSError as refused:
        print(path, refused.strerror)
""",
    ),
    Attack(
        "more rights",
        """
import os, subprocess
print(open("/proc/self/status").read())
search = ["find", "/", "-xdev", "-type", "f", "-perm", "/6000"]
found = subprocess.run(search, capture_output=True, text=True)
if found.stdout.strip():
    print("got in", found.stdout)
print(os.getuid(), os.getgid(), os.getgroups())
""",
        says=r"(?s)CapEff:\s+0000000000000000.*NoNewPrivs:\s+1.*Seccomp:\s+2.*65534 65534",
    ),
]

FILES = [
    Attack(
        "links out of the folder",
        """
import os
os.symlink("/etc/passwd", "/mnt/data/passwd")
os.symlink("/proc/1/environ", "/mnt/data/environ")
os.symlink("/", "/mnt/data/everything")
os.symlink("loop", "/mnt/data/loop")
os.mkfifo("/mnt/data/pipe")
import socket
socket.socket(socket.AF_UNIX).bind("/mnt/data/socket")
os.mkdir("/mnt/data/folder")
os.link("/mnt/data/pipe", "/mnt/data/pipe2")
print("made")
""",
        says="made",
    ),
    Attack(
        "a sparse file of a terabyte",
        """
import os
try:
    with open("/mnt/data/sparse", "wb") as sparse:
        sparse.truncate(2**40)
    print("made")
except OSError as refused:
    print(refused.strerror)
with open("/mnt/data/half", "wb") as sparse:
    sparse.truncate(400 * 1024 * 1024)
""",
    ),
    Attack(
        "names that mean harm",
        r"""
import os
for name in ("..\\..\\x", "new\nline", "\x1b[31mred", "' OR 1=1 --", "<script>", "-rf", "x" * 255,
             "CON", "a\u202eb.txt", "\udcff\udcfe", ".hidden", "%2e%2e%2f", "name\r\nX: y", " "):
    with open(os.path.join("/mnt/data", name), "w", errors="surrogateescape") as file:
        file.write("x")
print("made")
""",
        says="made",
    ),
]

ALL = [*BOMBS, *FLOODS, *LOOPS, *NETWORK, *DRIVER, *KERNEL, *FILES]
