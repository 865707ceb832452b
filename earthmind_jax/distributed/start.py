"""One run on many processes: how they start, and how they fail and agree together.

Each process runs the same command and sees its own devices; jax makes one mesh of all of them. The processes are told
about each other by arguments, or by what started them:

- ``--coordinator HOST:PORT --processes N --process I``: anywhere; ``HOST`` is where process 0 runs.
- SLURM (``srun``), Open MPI 4 (``mpirun``): nothing to add; jax reads number, rank and coordinator from the environment
  and gives each process the device of its local rank. Open MPI 5 tells no address: add ``--coordinator HOST:PORT``.
- Kubernetes (an Indexed Job or JobSet, with ``jax[k8s]``), TPU slices of several hosts on GKE: nothing to add.
- ``--coordinator auto``: jax looks for itself (TPU virtual machines, which a metadata server tells of each other).

``--processes 1`` is one process alone, whatever started it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator

import jax
import numpy as np

from earthmind_jax.distributed.peers import watch
from earthmind_jax.distributed.rendezvous import meet
from earthmind_jax.errors import UserError, WorkError

AUTO = "auto"
RANKS = {
    "SLURM": ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID"),
    "Open MPI": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"),
}
"""What a launcher calls the number of processes, the rank of this one, and its rank on this machine."""
SHUTDOWN = 60  # seconds that a process waits at its end for the others


def start(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    timeout: float = 300.0,
) -> None:
    """Join the processes of this run; call it before anything asks jax for devices. Alone, it does nothing.

    What follows belongs within :func:`earthmind_jax.distributed.peers.failing_together`, so that a lost process ends
    the others in one sentence.

    Args:
      coordinator: ``HOST:PORT`` of process 0, or ``auto``; None takes what the launcher says.
      processes, process: how many there are and which one this is, from 0; None takes the launcher's.
      timeout: seconds to wait for the others.

    Raises:
      UserError: the arguments are incomplete or contradict each other, or the launcher does not say enough.
      WorkError: the others did not come in time.
    """
    if processes == 1 and coordinator in (None, AUTO) and process in (None, 0):
        return
    launcher = _launcher()
    devices = None  # of this machine that this process has; None is all of them
    if launcher in RANKS and coordinator not in (None, AUTO):
        count, rank, local = (int(os.environ[name]) for name in RANKS[launcher])
        processes, process = (count if processes is None else processes), (rank if process is None else process)
        devices = None if "JAX_LOCAL_DEVICE_IDS" in os.environ else [local]
    if coordinator in (None, AUTO):
        if processes is not None or process is not None:
            raise UserError("--processes and --process also need --coordinator HOST:PORT, the address of process 0.")
        if coordinator is None and launcher is None:
            return
        _initialize(launcher, None, initialization_timeout=round(timeout))
        return
    host, port = address(coordinator)
    if processes is None or process is None:
        raise UserError("--coordinator also needs --processes (how many) and --process (which one this is, from 0).")
    if processes < 1:
        raise UserError(f"--processes must be at least 1, not {processes}.")
    if not 0 <= process < processes:
        raise UserError(f"--process {process} does not exist among {processes} processes: they count from 0.")
    meet(host, port, processes, process, timeout)
    _initialize(
        None,
        host,
        coordinator_address=f"{host}:{port}",
        num_processes=processes,
        process_id=process,
        initialization_timeout=round(timeout),
        local_device_ids=devices,
        cluster_detection_method="deactivate",
    )


def address(coordinator: str) -> tuple[str, int]:
    """(host, port) of ``HOST:PORT``; an IPv6 host is written in brackets.

    Raises:
      UserError: no port, or not a port number.
    """
    host, colon, port = coordinator.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise UserError(f"--coordinator is HOST:PORT with a port from 1 to 65535, not '{coordinator}'.")
    return host.removeprefix("[").removesuffix("]"), int(port)


def leads() -> bool:
    """Whether this process speaks for the run: it prints, and writes what orbax does not."""
    return jax.process_index() == 0


@contextlib.contextmanager
def together(what: str) -> Iterator[None]:
    """All processes pass, or none: where one fails within, the others stop as well instead of waiting for it.

    Raises:
      WorkError: in the processes that did not fail themselves.
    """
    try:
        yield
    except Exception:
        _gathered(np.ones(1, np.int32))
        raise
    failed = np.flatnonzero(_gathered(np.zeros(1, np.int32)))
    if failed.size:
        raise WorkError(f"Process {failed[0]} failed at {what}; its own message says why.")


def agree(what: str, text: str) -> None:
    """Raise a UserError in every process unless ``text`` is the same in all of them."""
    digests = _gathered(np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8).astype(np.int32))
    other = [i for i, digest in enumerate(digests) if (digest != digests[0]).any()]
    if other:
        raise UserError(f"Process {other[0]} has another {what} than process 0; start all of them with the same files.")


def _gathered(row: np.ndarray) -> np.ndarray:
    """``row`` of every process, in their order."""
    if jax.process_count() == 1:
        return row[None]
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(row)).reshape(jax.process_count(), -1)


def _launcher() -> str | None:
    """What started several processes, if the environment says so."""
    for name, variables in RANKS.items():
        present = all(variable in os.environ for variable in variables) and int(os.environ[variables[0]]) > 1
        # srun sets a step's node list; a shell inside an allocation has the count but is one process.
        if present and (name != "SLURM" or "SLURM_STEP_NODELIST" in os.environ):
            return name
    if "KUBERNETES_SERVICE_HOST" in os.environ and "JOB_COMPLETION_INDEX" in os.environ:
        return "Kubernetes"
    if "," in os.environ.get("TPU_WORKER_HOSTNAMES", "") or "MEGASCALE_COORDINATOR_ADDRESS" in os.environ:
        return "TPU"
    return None


def _initialize(launcher: str | None, host: str | None, **arguments: object) -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(shutdown_timeout_seconds=SHUTDOWN, **arguments)
    except (ValueError, RuntimeError) as error:  # jax found no launcher, or the launcher's interface failed
        by = f"{launcher} started several processes, but jax" if launcher else "jax"
        raise UserError(
            f"{by} could not start on many processes ({str(error).splitlines()[0].rstrip('.')}); say --coordinator "
            "HOST:PORT --processes N --process I, or --processes 1 for one process alone."
        ) from error
    if jax.process_count() > 1:
        watch(host)
