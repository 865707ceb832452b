"""The checkpoint that a run starts from.

Training decides some fields of its model: adapters (a checkpoint without them gets new ones), rematerialisation,
precision and ``max_length``. The rest must be what the configuration says.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax

from earthmind_jax import checkpoint
from earthmind_jax.config import EarthMindConfig, RunConfig, to_dict
from earthmind_jax.errors import UserError
from earthmind_jax.models import api
from earthmind_jax.train.directory import differences
from earthmind_jax.train.state import RUN_ONCE
from earthmind_jax.types import Params


def adopted(config: RunConfig, start: Path | None) -> RunConfig:
    """``config`` with the model of ``start`` where it asks for that (``from_start``), but for what training decides.

    Raises:
      UserError: there is no such checkpoint.
    """
    if not config.from_start:
        return config
    if start is None:
        raise UserError(f"The configuration '{config.name}' trains the model of a checkpoint: name it with --start.")
    model = checkpoint.read_config(start)
    wanted = config.model
    lm = dataclasses.replace(model.lm, lora=wanted.lm.lora or model.lm.lora, remat=wanted.lm.remat)
    vision = dataclasses.replace(model.vision, remat=wanted.vision.remat)
    model = dataclasses.replace(
        model, lm=lm, vision=vision, precision=wanted.precision, max_length=min(model.max_length, wanted.max_length)
    )
    return dataclasses.replace(config, model=model)


def starting_params(config: RunConfig, start: Path) -> Params:
    """The weights of ``start``, and new adapters where it has none; kernels in the dtype in which they are stored.

    Raises:
      UserError: ``start`` holds another model, or adapters that the configuration does not have.
    """
    model, params = checkpoint.load(start)
    same = _but_for_training(model) == _but_for_training(config.model)
    lora, wanted = model.lm.lora, config.model.lm.lora
    if not same or (lora is not None and lora != wanted):
        differing = "; ".join(differences(to_dict(model), to_dict(config.model)))
        raise UserError(f"{start} holds another model than the configuration ({differing}); set the same there.")
    missing = sorted(set(api.shapes(config.model)) - set(params))
    if missing:
        new = jax.jit(lambda: api.init(config.model, jax.random.key(config.seed), missing), compiler_options=RUN_ONCE)
        params |= new()
    return params


def _but_for_training(model: EarthMindConfig) -> EarthMindConfig:
    plain = EarthMindConfig()
    return dataclasses.replace(
        model,
        lm=dataclasses.replace(model.lm, lora=None, remat="none"),
        vision=dataclasses.replace(model.vision, remat="none"),
        precision=plain.precision,
        max_length=plain.max_length,
    )
