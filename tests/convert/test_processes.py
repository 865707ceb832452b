"""A checkpoint onto meshes of two processes: each reads its own bytes, and together they hold what one would."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import textwrap

import numpy as np
import published
from safetensors.numpy import load_file

from checkpoints_convert.convert import convert

CONFIG = published.config(grounding=False)
PROCESSES, DEVICES = 2, 4
MESHES = tuple({"data": d, "fsdp": f, "tensor": t} for d, f, t in ((1, 8, 1), (2, 2, 2), (1, 2, 4)))

PROCESS = """
    import json, sys

    import jax

    address, count, number, source, out, meshes = sys.argv[1:]
    jax.distributed.initialize(address, int(count), int(number), initialization_timeout=60)

    import numpy as np
    from safetensors.numpy import save_file

    from checkpoints_convert.reader import Source
    from checkpoints_convert.sharded import convert_sharded
    from earthmind_jax.config import MeshConfig
    from earthmind_jax.distributed.mesh import make_mesh
    from earthmind_jax.distributed.sharding import replicated

    asked, read = [0], Source.read

    def counted(self, name, region=...):
        array = read(self, name, region)
        asked[0] += array.size
        return array

    Source.read = counted
    for index, sizes in enumerate(json.loads(meshes)):
        mesh, asked[0] = make_mesh(MeshConfig(**sizes)), 0
        _, params = convert_sharded(source, mesh)
        # Devices may hold the same part of an array.
        parts = [{str(shard.index): shard.data.size for shard in x.addressable_shards} for x in params.values()]
        facts = {
            "devices": [len(jax.local_devices()), len(jax.devices())],
            "read": asked[0],
            "held": sum(sum(sizes.values()) for sizes in parts),
        }
        gathered = jax.jit(lambda x: x, out_shardings=replicated(mesh))(params)
        save_file({path: np.asarray(x) for path, x in gathered.items()}, f"{out}/{number}.{index}.safetensors")
        with open(f"{out}/{number}.{index}.json", "w") as file:
            json.dump(facts, file)
"""


def in_processes(source, out):
    """Run :data:`PROCESS` on :data:`PROCESSES` x :data:`DEVICES` virtual devices of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = re.sub(r"(device_count=)\d+", rf"\g<1>{DEVICES}", os.environ["XLA_FLAGS"])
    code = [sys.executable, "-c", textwrap.dedent(PROCESS), address, str(PROCESSES)]
    running = [
        subprocess.Popen(
            [*code, str(number), str(source), str(out), json.dumps(MESHES)],
            env=os.environ | {"XLA_FLAGS": flags},
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(PROCESSES)
    ]
    try:
        errors = [process.communicate(timeout=120)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0] * PROCESSES, "\n".join(errors)


def test_each_process_reads_its_own_bytes(tmp_path):
    weights = published.tensors("internvl", CONFIG)
    source = published.write(tmp_path / "source", "internvl", CONFIG, weights, shards=2)
    in_processes(source, tmp_path)
    _, expected = convert(source)
    whole = sum(array.size for array in expected.values())
    for index, sizes in enumerate(MESHES):
        for number in range(PROCESSES):
            facts = json.loads((tmp_path / f"{number}.{index}.json").read_text())
            assert facts["devices"] == [DEVICES, PROCESSES * DEVICES]
            assert facts["read"] == facts["held"]  # nothing twice, nothing in vain
            if sizes["data"] == PROCESSES:  # each has a replica
                assert facts["read"] == whole
            else:
                assert facts["read"] < 0.6 * whole
            gathered = load_file(tmp_path / f"{number}.{index}.safetensors")
            assert set(gathered) == set(expected)
            for path, array in expected.items():
                np.testing.assert_array_equal(gathered[path], array)
