"""A process of a run that dies ends the others in one sentence, instead of leaving them waiting for its part.

jax itself notices a lost process after a heartbeat timeout of 100 s (process 0 at once) and aborts with a stack trace.
Here every process holds a connection to process 0 that is used for nothing else. The system
closes it when a process ends, however it ends; where a machine or the network is gone, probes find out within
:data:`SILENCE` seconds. Process 0 tells the others. Saved steps are whole whenever a process ends, so the same command
goes on after the last one.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Iterator

import jax
import numpy as np

from earthmind_jax.errors import UserError, WorkError

SILENCE = 30  # seconds after which a machine that does not answer is lost
GRACE = 30.0  # seconds to end by itself for a process whose peer failed: both may have found the same thing
JOINING = 20.0  # seconds to connect; without a connection jax's own timeout remains
BLAME = 5.0  # seconds in which the watching thread learns whose loss broke a collective
ADDRESS = 512  # bytes of it that are sent around
WELCOME = b"welcome\n"

_line: Lifeline | None = None


class Lifeline:
    """The connections of this process to its peers, watched by a thread.

    Args:
      peers: connected sockets by the process at the other end: of process 0 all others, of these process 0.
      process: which one this is.
    """

    def __init__(self, peers: dict[int, socket.socket], process: int) -> None:
        self._peers, self._process = peers, process
        self._said_goodbye = False
        threading.Thread(target=self._watch, name="peers", daemon=True).start()

    def leave(self, word: str = "bye") -> None:
        """Tell the others that this process ends on purpose: ``bye``, or ``failed`` where they cannot go on."""
        if not self._said_goodbye:
            self._said_goodbye = True
            self._tell(f"{word} {self._process}")

    def _watch(self) -> None:
        with selectors.DefaultSelector() as ready:
            for number, peer in self._peers.items():
                ready.register(peer, selectors.EVENT_READ, number)
            while ready.get_map():
                for key, _ in ready.select():
                    if self._heard(key.data, key.fileobj):
                        ready.unregister(key.fileobj)

    def _heard(self, number: int, peer: socket.socket) -> bool:
        """What came from a process; whether it was the last."""
        try:
            said = peer.recv(1000).decode()
        except OSError:  # the probes had no answer
            said = ""
        if self._said_goodbye:
            return not said
        if not said:
            return self._lose(number)
        word, _, who = said.splitlines()[0].partition(" ")
        if word == "lost":
            return self._lose(int(who))
        if word == "failed":
            if self._process == 0:
                self._tell(f"failed {who}")
            timer = threading.Timer(GRACE, _end, (f"Process {who} of this run failed; its own message says why.",))
            timer.daemon = True
            timer.start()
        return True

    def _lose(self, number: int) -> bool:
        if self._process == 0:
            self._tell(f"lost {number}")
        _end(
            f"Process {number} of this run was lost: it was killed, or its machine cannot be reached. Start all "
            "processes again with the same command; the run goes on after its last saved step."
        )
        return True

    def _tell(self, words: str) -> None:
        for peer in self._peers.values():
            with contextlib.suppress(OSError):
                peer.sendall(f"{words}\n".encode())


def _end(sentence: str) -> None:
    """End this process, whose main thread may wait for ever inside a collective: no cleaning up can be done."""
    os.write(2, f"\nfailed: {sentence}\n".encode())
    os._exit(1)


def watch(host: str | None = None) -> None:
    """Connect the processes of this run; to be called by all of them once jax has started.

    Args:
      host: name or address of process 0, where it is known; else it tells its own.
    """
    from jax.experimental import multihost_utils

    global _line
    process, count = jax.process_index(), jax.process_count()
    server, token = (_listen(), secrets.token_hex(16)) if process == 0 else (None, "")
    place = f"{host or socket.gethostname()} {server.getsockname()[1]} {token}" if server else ""
    padded = np.frombuffer(place.encode().ljust(ADDRESS), np.uint8)
    told = bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded), np.uint8)).decode().split()
    if server is not None:
        with server:
            peers = _accept(server, token, count)
    else:
        peers = _connect(told[0], int(told[1]), told[2], process)
    if peers:
        _line = Lifeline(peers, process)
        atexit.register(_line.leave)


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
    """Where this process fails within, its peers are told; where a peer's loss is why, that is what it says."""
    try:
        yield
    except BaseException as error:
        if _line is not None:
            if isinstance(error, Exception) and not isinstance(error, (UserError, WorkError)):
                time.sleep(BLAME)  # a collective broken by a loss: the watching thread says whose, and ends the process
            _line.leave("failed")
        raise


def _listen() -> socket.socket:
    both = socket.has_dualstack_ipv6()
    return socket.create_server(
        ("", 0), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both, backlog=1024
    )


def _accept(server: socket.socket, token: str, count: int) -> dict[int, socket.socket]:
    """The processes that came in time and knew the token."""
    peers: dict[int, socket.socket] = {}
    deadline = time.monotonic() + JOINING
    while len(peers) < count - 1 and (left := deadline - time.monotonic()) > 0:
        server.settimeout(left)
        with contextlib.suppress(OSError):
            peer = server.accept()[0]
            peer.settimeout(left)
            said = peer.recv(1000).decode(errors="replace").split()
            if len(said) == 2 and said[0] == token and said[1].isdigit():
                peer.sendall(WELCOME)
                peers[int(said[1])] = _probed(peer)
            else:
                peer.close()
    return peers


def _connect(host: str, port: int, token: str, process: int) -> dict[int, socket.socket]:
    with contextlib.suppress(OSError):
        peer = socket.create_connection((host, port), timeout=JOINING)
        peer.sendall(f"{token} {process}\n".encode())
        # Without it process 0 has gone on alone, and its end of the connection says nothing.
        if peer.recv(len(WELCOME), socket.MSG_WAITALL) == WELCOME:
            return {0: _probed(peer)}
        peer.close()
    return {}


def _probed(peer: socket.socket) -> socket.socket:
    """Ask the other machine whether it is still there, also while nobody says anything."""
    peer.settimeout(None)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", SILENCE // 3), ("TCP_KEEPINTVL", SILENCE // 6), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):  # macOS has other names
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return peer
