"""Processes of one run find each other before jax starts.

A process that waits in vain inside ``jax.distributed.initialize`` is aborted with a stack trace. Here it is told in one
sentence who is missing; jax then starts on the same port, knowing that everybody is there.
"""

from __future__ import annotations

import contextlib
import socket
import time

from earthmind_jax.errors import UserError, WorkError

GREETING = "earthmind"
PAUSE = 0.2  # seconds between two attempts to reach the coordinator
PATIENCE = 5.0  # seconds for a peer to say who it is


def meet(host: str, port: int, processes: int, process: int, timeout: float) -> None:
    """Return when all ``processes`` have met at ``host:port``, where process 0 listens.

    Raises:
      UserError: the port is taken, or the processes do not agree on how many they are or who is who.
      WorkError: not all of them came within ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    if process == 0:
        _gather(host, port, processes, deadline, timeout)
    else:
        _join(host, port, processes, process, deadline, timeout)


def _gather(host: str, port: int, processes: int, deadline: float, timeout: float) -> None:
    with contextlib.ExitStack() as open_sockets:
        server = open_sockets.enter_context(_listen(port))
        came: dict[int, socket.socket] = {}
        while len(came) < processes - 1:
            left = deadline - time.monotonic()
            server.settimeout(max(left, 0.01))
            try:
                peer = open_sockets.enter_context(server.accept()[0])
            except TimeoutError:
                missing = ", ".join(str(i) for i in range(1, processes) if i not in came)
                raise WorkError(
                    f"Only {len(came) + 1} of {processes} processes came to {host}:{port} within {timeout:g} s; "
                    f"missing: {missing}. Start them all with the same --coordinator and --processes."
                ) from None
            said = _line(peer, PATIENCE).split()
            if len(said) != 3 or said[0] != GREETING or not all(word.isdigit() for word in said[1:]):
                continue  # not one of ours
            number, count = int(said[1]), int(said[2])
            wrong = ""
            if count != processes:
                wrong = f"Process {number} was started with --processes {count}, process 0 with {processes}."
            elif number in came or number == 0:
                wrong = f"Two processes were started with --process {number}."
            if wrong:
                _say(wrong, [peer, *came.values()])
                raise UserError(wrong)
            came[number] = peer
        _say("go", list(came.values()))


def _join(host: str, port: int, processes: int, process: int, deadline: float, timeout: float) -> None:
    answer = ""
    while not answer:
        left = deadline - time.monotonic()
        if left <= 0:
            raise WorkError(
                f"The processes of this run did not all meet at {host}:{port} within {timeout:g} s; check that process "
                "0 runs there, that its port can be reached, and that all others were started."
            )
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=min(left, PATIENCE)) as peer:
            peer.sendall(f"{GREETING} {process} {processes}\n".encode())
            answer = _line(peer, max(deadline - time.monotonic(), 0.01))
        if not answer:
            time.sleep(PAUSE)
    if answer != "go":
        raise UserError(answer)


def _listen(port: int) -> socket.socket:
    both = socket.has_dualstack_ipv6()
    try:
        return socket.create_server(
            ("", port), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both, backlog=1024
        )
    except OSError as error:
        raise UserError(
            f"Process 0 cannot listen on port {port} ({error.strerror or error}); choose another in --coordinator."
        ) from error


def _line(peer: socket.socket, timeout: float) -> str:
    """What ``peer`` says up to the end of the line; nothing if it says none in time."""
    peer.settimeout(timeout)
    said = b""
    with contextlib.suppress(OSError):
        while not said.endswith(b"\n") and len(said) < 1000:
            part = peer.recv(1000)
            if not part:
                return ""
            said += part
    return said.decode(errors="replace").strip() if said.endswith(b"\n") else ""


def _say(words: str, peers: list[socket.socket]) -> None:
    for peer in peers:
        with contextlib.suppress(OSError):
            peer.sendall(f"{words}\n".encode())
