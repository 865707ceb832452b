"""A stack of equal blocks: the only file that knows how layers are scanned and rematerialised.

A block is a module with ``__call__(carry, per_layer, shared) -> (carry, output)``: the carry flows through the layers,
``per_layer`` holds one slice per layer, ``shared`` is the same for all (any pytree, or None), outputs are stacked.
Static choices are fields of the block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from earthmind_jax.nn.packed import over_packed
from earthmind_jax.nn.param import sharded

REMAT: dict[str, Callable[..., bool] | None] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,  # keep the block's input alone
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # keep the outputs of weight products, too
}


def _all_but_resharded(primitive: Any, *_: Any, **__: Any) -> bool:
    """What "none" keeps in a sharded step: otherwise the weights of all layers, brought together, would be kept."""
    return primitive.name != "sharding_constraint"


def scan_or_loop(
    block: type[nn.Module], depth: int, *, scan: bool = True, remat: str = "none", packed: bool = False
) -> Callable[..., Any]:
    """``block`` repeated ``depth`` times, as a module class: ``scan_or_loop(Block, 24)(config, name="blocks")``.

    Parameters (and LoRA factors) of the layers are stacked along axis 0, logical axis "layers", whether or not ``scan``
    is set, so that the two forms share checkpoints. ``scan=False`` unrolls: longer compilation, no loop at run time.

    Args:
      remat: what the backward pass keeps of each block, a key of :data:`REMAT`.
      packed: move half-precision weights as in :mod:`earthmind_jax.nn.packed`; not while parameters are created.
    """
    policy = REMAT[remat]
    if policy is None and sharded():
        policy = _all_but_resharded
    if policy is not None:
        # A loop keeps XLA from merging the recomputation with the forward pass; unrolled layers need the barrier.
        block = nn.remat(block, policy=policy, prevent_cse=not scan)

    def loop(block: type[nn.Module]) -> Callable[..., Any]:
        return nn.scan(
            block,
            variable_axes={"params": 0, "lora": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast),
            length=depth,
            unroll=1 if scan else depth,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )

    return over_packed(block, loop) if packed else loop(block)
