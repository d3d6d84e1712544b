"""Runs a Python program that nobody has read: `python -I -S jail.py SECONDS < program`.

A seccomp filter (Linux's own, no privileges needed, see seccomp(2)) leaves the program the few
system calls that an interpreter computes with: no sockets, no processes or threads, no signals
to others, no changes to files. Limits on processor time and memory come first. Standard library
only: this file runs by itself, without the package.

Exit status: PASSED, FAILED (the last line of stderr says why), NO_JAIL (nothing was run).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import signal
import struct
import sys
import traceback

PASSED, FAILED, NO_JAIL = 81, 82, 83  # not 0: a program that ends early has not passed
MEMORY_BYTES = 1 << 30
MAX_MESSAGE = 300

# Name: (number on x86_64, on aarch64), from Linux's syscall tables; -1: not there.
CALLS = {
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "stat": (4, -1),
    "fstat": (5, 80),
    "lstat": (6, -1),
    "lseek": (8, 62),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "pread64": (17, 67),
    "sched_yield": (24, 124),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "nanosleep": (35, 101),
    "getpid": (39, 172),
    "exit": (60, 93),
    "uname": (63, 160),
    "getcwd": (79, 17),
    "readlink": (89, -1),
    "gettimeofday": (96, 169),
    "getrusage": (98, 165),
    "times": (100, 153),
    "getuid": (102, 174),
    "getgid": (104, 176),
    "geteuid": (107, 175),
    "getegid": (108, 177),
    "sigaltstack": (131, 132),
    "gettid": (186, 178),
    "futex": (202, 98),
    "sched_getaffinity": (204, 123),
    "getdents64": (217, 61),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "exit_group": (231, 94),
    "newfstatat": (262, 79),
    "readlinkat": (267, 78),
    "getrandom": (318, 278),
    "statx": (332, 291),
}
OPENAT = (257, 56)
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06  # classic BPF
_NR_AT, _ARCH_AT, _FLAGS_AT = 0, 4, 32  # in struct seccomp_data; flags are openat's third
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_REFUSE = 0x00050000 | errno.EPERM
_NO_NEW_PRIVS, _SET_SECCOMP, _FILTER, _DEATH_SIGNAL = 38, 22, 2, 1  # prctl's


def main() -> int:
    source = sys.stdin.read()
    _limit(float(sys.argv[1]))
    try:
        _close_the_door()
    except OSError as error:
        print(error, file=sys.stderr)
        return NO_JAIL
    try:
        code = compile(source, "program", "exec")
        exec(code, {"__name__": "program"})
    except BaseException as error:  # SystemExit too: who leaves early has not passed
        text = traceback.format_exception_only(type(error), error)[-1].strip()
        print(text[:MAX_MESSAGE].encode("ascii", "backslashreplace").decode(), file=sys.stderr)
        return FAILED
    return PASSED


def _limit(seconds: float) -> None:
    whole = int(seconds) + 5  # only the last resort: who started this ends it by the clock
    for what, value in (
        (resource.RLIMIT_CPU, whole),
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_FSIZE, 1 << 16),  # what it may print
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 64),
    ):
        resource.setrlimit(what, (value, value))


def _close_the_door() -> None:
    """From here on this process can only compute. Raises OSError where that can't be had."""
    machine = platform.machine()
    if sys.platform != "linux" or machine not in AUDIT_ARCH:
        raise OSError(f"no list of system calls for {sys.platform} on {machine}")
    program = b"".join(_filter(machine))
    buffer = ctypes.create_string_buffer(program)
    # struct sock_fprog: the number of instructions, padding, where they are.
    header = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    unsigned = ctypes.c_ulong
    zero = unsigned(0)
    libc.prctl(_DEATH_SIGNAL, unsigned(signal.SIGKILL), zero, zero, zero)  # as who started it ends
    if libc.prctl(_NO_NEW_PRIVS, unsigned(1), zero, zero, zero) or libc.prctl(
        _SET_SECCOMP, unsigned(_FILTER), ctypes.c_char_p(header), zero, zero
    ):
        number = ctypes.get_errno()
        raise OSError(number, f"seccomp: {os.strerror(number)}")


def _filter(machine: str) -> list[bytes]:
    """The BPF program: allowed calls pass, opening to read passes, the rest gets EPERM."""
    column = list(AUDIT_ARCH).index(machine)
    numbers = [pair[column] for pair in CALLS.values() if pair[column] >= 0]
    checks = []
    for number in numbers:
        checks += [_step(_EQUAL, number, no=1), _step(_RETURN, _ALLOW)]
    return [
        _step(_LOAD, _ARCH_AT),
        _step(_EQUAL, AUDIT_ARCH[machine], yes=1),
        _step(_RETURN, _KILL),  # another ABI's numbers mean other calls
        _step(_LOAD, _NR_AT),
        *checks,
        _step(_EQUAL, OPENAT[column], no=3),
        _step(_LOAD, _FLAGS_AT),
        _step(_ANY_BIT, WRITING, yes=1),
        _step(_RETURN, _ALLOW),
        _step(_RETURN, _REFUSE),
    ]


def _step(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("HBBI", code, yes, no, value)


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)
