"""Several processes that find each other: as many controllers of one JAX job, on this machine."""

import socket
import subprocess
import sys


def run(program: str, *arguments: object, count: int = 2, timeout: float = 300) -> list[str]:
    """Runs lines of Python in so many processes at once, which all must end well.

    Args:
      program: finds in sys.argv its number, the port of process 0 on 127.0.0.1, and the arguments.
      timeout: seconds, for each.

    Returns:
      What each printed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", program]
    processes = [
        subprocess.Popen([*command, str(i), str(port), *map(str, arguments)], stdout=subprocess.PIPE, text=True)
        for i in range(count)
    ]
    try:
        printed = [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()  # those that wait for one that failed; nothing to one that has ended
    assert [process.returncode for process in processes] == [0] * count
    return printed
