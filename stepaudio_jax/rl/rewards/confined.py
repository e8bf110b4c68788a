"""Confines its own process, then runs a program in it. sandbox.py starts this file with `python -I -S -B`, so it uses
the standard library alone.

What the program is left with, on Linux from 6.2, with or without root: reading the standard library and system
libraries; reading and writing plain files in its folder, which is empty; the system calls below, all others failing.
No other file, no process or thread, no signal to others, no network. Limits of memory, processor time, file size.
By landlock(7), seccomp(2), capabilities(7), setrlimit(2).
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import resource
import signal
import struct
import sys
import types

# Name and number on x86-64 and on arm64 of each system call that stays, "-" where there is no such call.
SYSTEM_CALLS = """
read 0 63, write 1 64, open 2 -, close 3 57, stat 4 -, fstat 5 80, lstat 6 -, poll 7 -, lseek 8 62, mmap 9 222,
mprotect 10 226, munmap 11 215, brk 12 214, rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139,
pread64 17 67, pwrite64 18 68, readv 19 65, writev 20 66, access 21 -, pipe 22 -, select 23 -,
sched_yield 24 124, mremap 25 216, madvise 28 233, dup 32 23, dup2 33 -, pause 34 -, nanosleep 35 101,
getitimer 36 102, alarm 37 -, setitimer 38 103, getpid 39 172, exit 60 93, uname 63 160, fsync 74 82,
fdatasync 75 83, ftruncate 77 46, getdents 78 -, getcwd 79 17, chdir 80 49, rename 82 -, unlink 87 -,
readlink 89 -, umask 95 166, gettimeofday 96 169, getrlimit 97 163, getrusage 98 165, sysinfo 99 179,
times 100 153, getuid 102 174, getgid 104 176, geteuid 107 175, getegid 108 177, getppid 110 173,
rt_sigpending 127 136, rt_sigtimedwait 128 137, rt_sigsuspend 130 133, sigaltstack 131 132, arch_prctl 158 -,
gettid 186 178, futex 202 98, sched_getaffinity 204 123, getdents64 217 61, set_tid_address 218 96,
restart_syscall 219 128, clock_gettime 228 113, clock_getres 229 114, clock_nanosleep 230 115,
exit_group 231 94, openat 257 56, newfstatat 262 79, unlinkat 263 35, renameat 264 38, readlinkat 267 78,
faccessat 269 48, pselect6 270 72, ppoll 271 73, set_robust_list 273 99, dup3 292 24, pipe2 293 59,
renameat2 316 276, getrandom 318 278, statx 332 291, rseq 334 293, faccessat2 439 439
"""
ARCHITECTURES = {"x86_64": (0, 0xC000003E, 72), "aarch64": (1, 0xC00000B7, 25)}  # column above, audit number, fcntl
FCNTL_COMMANDS = (0, 1, 2, 3, 1030)  # of file descriptors; not those that have signals sent to a process
LANDLOCK_ABI = 3  # Linux 6.2: below, files can be emptied that cannot be written

word = ctypes.c_ulong

READ, READ_FOLDER = 1 << 2, 1 << 3
WRITE, REMOVE, MAKE, TRUNCATE = 1 << 1, 1 << 5, 1 << 8, 1 << 14


def confine(job: dict) -> None:
    """Irrevocably confines this process. Raises OSError where the system cannot, and before anything has run."""
    libc = ctypes.CDLL(None, use_errno=True)

    def call(what: str, result: int) -> int:
        if result < 0:
            raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
        return result

    if platform.machine() not in ARCHITECTURES:
        raise OSError(f"machine: expected one of {', '.join(ARCHITECTURES)}, found {platform.machine()}")
    call("die with the parent", libc.prctl(1, word(signal.SIGKILL), word(0), word(0), word(0)))
    if os.getppid() != job["parent"]:
        os._exit(1)
    call("no new privileges", libc.prctl(38, word(1), word(0), word(0), word(0)))
    _restrict_files(libc, call, job)
    capset = {"x86_64": 126, "aarch64": 91}[platform.machine()]
    header, none = struct.pack("Ii", 0x20080522, 0), bytes(24)
    call("capset", libc.syscall(capset, header, none))
    for limit, amount in (
        (resource.RLIMIT_AS, job["memory"]),
        (resource.RLIMIT_CPU, job["cpu_seconds"]),
        (resource.RLIMIT_FSIZE, job["file_bytes"]),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (amount, amount))
    _restrict_calls(libc, call)


def _restrict_files(libc, call, job: dict) -> None:
    abi = libc.syscall(444, None, word(0), 1)
    if abi < LANDLOCK_ABI:
        raise OSError(f"Landlock: expected version {LANDLOCK_ABI} (Linux 6.2) or later, found {max(abi, 0)}")
    files = (1 << 15 if abi < 5 else 1 << 16) - 1
    rules = struct.pack("QQQ", files, 3, 3)[: 24 if abi >= 6 else 16 if abi >= 4 else 8]  # files, TCP, signals
    ruleset = call("landlock_create_ruleset", libc.syscall(444, rules, word(len(rules)), 0))
    everything = READ | READ_FOLDER | WRITE | REMOVE | MAKE | TRUNCATE
    for path, rights in [(job["folder"], everything), *((path, READ | READ_FOLDER) for path in job["readable"])]:
        if not os.path.exists(path):
            continue
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
        allowed = rights if os.path.isdir(path) else rights & ~READ_FOLDER
        rule = struct.pack("=Qi", allowed, opened)
        call("landlock_add_rule", libc.syscall(445, ruleset, 1, rule, 0))
        os.close(opened)
    call("landlock_restrict_self", libc.syscall(446, ruleset, 0))
    os.close(ruleset)


def _restrict_calls(libc, call) -> None:
    """A filter in the language of seccomp(2): the calls of the table pass, of fcntl some; others do not exist."""
    column, architecture, fcntl = ARCHITECTURES[platform.machine()]
    load, equal, answer = 0x20, 0x15, 0x06
    allow, kill, missing = 0x7FFF0000, 0x80000000, 0x00050000 | 38  # ENOSYS

    def accept(number: int):
        return [(equal, 0, 1, number), (answer, 0, 0, allow)]

    steps = [(load, 0, 0, 4), (equal, 1, 0, architecture), (answer, 0, 0, kill), (load, 0, 0, 0)]
    for line in SYSTEM_CALLS.split(","):
        if (number := line.split()[1 + column]) != "-":
            steps += accept(int(number))
    steps += [(equal, 1, 0, fcntl), (answer, 0, 0, missing), (load, 0, 0, 24)]  # its second argument
    for command in FCNTL_COMMANDS:
        steps += accept(command)
    steps.append((answer, 0, 0, missing))
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = struct.pack("HP", len(steps), ctypes.addressof(code))
    call("seccomp", libc.prctl(22, word(2), ctypes.c_char_p(program), word(0), word(0)))


def main() -> None:
    """Reads the job from the file descriptor in argv, confines, writes one byte 1 to standard output, and runs.

    Where it cannot be confined it writes a byte 0 and the reason instead, and runs nothing. A job with a `call` has
    the program's own output dropped, and the repr of the called expression's value written in its place.
    """
    with open(int(sys.argv[1]), encoding="utf-8") as file:
        job = json.load(file)
    results = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        confine(job)
    except Exception as error:
        os.write(results, b"\0" + f"{type(error).__name__}: {error}".encode())
        os._exit(1)
    os.write(results, b"\1")
    if job["call"] is not None:
        os.dup2(nowhere, 1)
    os.close(nowhere)
    module = types.ModuleType("__main__" if job["call"] is None else "candidate")
    sys.modules[module.__name__] = module
    sys.argv = ["candidate.py"]
    exec(compile(job["source"], "candidate.py", "exec", dont_inherit=True), module.__dict__)
    if job["call"] is not None:
        value = eval(compile(job["call"], "call", "eval", dont_inherit=True), module.__dict__)
        text = repr(value).encode("utf-8", "backslashreplace")
        with open(results, "wb") as file:
            file.write(text)


if __name__ == "__main__":
    main()
