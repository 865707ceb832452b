"""``c_`` language models: teacher-forced batches and greedy decoding with a cache."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from checkpoints_convert.verify.recorded.case import Case, Report
from earthmind_jax.config import LmConfig, RopeConfig
from earthmind_jax.models import functional
from earthmind_jax.models.decoder import Decoder, init_cache
from earthmind_jax.types import LmOutput, Params

MARGIN = 1e-3  # a greedy choice nearer than this may differ


def language_model(case: Case, report: Report) -> None:
    """All hidden states, logits and attention of padded batches; greedy decoding step by step."""
    absolute = case.tolerance(2e-4, "error < {}")
    config, params = case.convert()
    for name in case.inputs:
        if name.endswith("input_ids"):
            run = name.removesuffix("input_ids").rstrip("_") or "batch"
            mask = case.inputs[name.replace("input_ids", "attention_mask")].astype(bool)
            batch(report, config, params, run, case.inputs[name], mask, absolute)
        elif name.endswith("_embeds"):
            prompt = name.removesuffix("_embeds")
            for run in (run for run in (prompt, f"{prompt}_cached") if f"{run}.ids" in case.outputs):
                generation(report, config, params, run, case.inputs[name], absolute)
            if f"{prompt}_nocache.ids" in case.outputs:
                recomputed(report, config, params, f"{prompt}_nocache", case.inputs[name], absolute)
    if "short_after_long.logits" in case.outputs:
        after_a_longer_call(report, config, params, absolute)


def forward(config: LmConfig, params: Params, ids: np.ndarray, mask: np.ndarray) -> tuple[LmOutput, jax.Array]:
    """All layers over a right-padded batch of tokens [B T], with states and attention; and the logits [B T V]."""
    assert (mask == (np.arange(mask.shape[1]) < mask.sum(1, keepdims=True))).all(), "the batch is not right-padded"
    module = Decoder(config)

    @jax.jit
    def run(ids: Any, lengths: Any) -> Any:
        embeds = functional.apply_module(module, params, "lm", ids, method="embed")
        out = functional.apply_module(module, params, "lm", embeds, lengths=lengths, states=True, attention=True)
        return out, functional.apply_module(module, params, "lm", out.hidden, method="logits")

    return run(ids.astype(np.int32), mask.sum(1).astype(np.int32))


def batch(
    report: Report, config: LmConfig, params: Params, run: str, ids: np.ndarray, mask: np.ndarray, tolerance: float
) -> None:
    """One right-padded batch; padded query rows are recorded but mean nothing."""
    out, logits = forward(config, params, ids, mask)
    rows = mask[:, :, None]
    report.close(f"{run}.logits", logits, tolerance, where=rows)
    for index, state in enumerate(out.states):
        report.close(f"{run}.hidden.{index}", state, tolerance, where=rows)
    for index, attention in enumerate(out.attention):
        report.close(f"{run}.attn_mean.{index}", attention, tolerance, where=rows)


@dataclass
class Generated:
    """Greedy decoding: ids [T'], logits of each step [T' V], last states of prompt and fed tokens [T + T' - 1 D]."""

    ids: np.ndarray
    logits: np.ndarray
    hidden: np.ndarray


@functools.lru_cache(maxsize=8)
def _compiled(config: LmConfig) -> tuple[Any, Any]:
    """Prefill and one step of decoding; each gives the output and the logits of the last token [V]."""
    module = Decoder(config)

    def run(params: Params, embeds: Any, cache: Any, fresh: bool) -> Any:
        out = functional.apply_module(module, params, "lm", embeds, cache=cache, fresh=fresh)
        return out, functional.apply_module(module, params, "lm", out.hidden[:, -1:], method="logits")[0, 0]

    def step(params: Params, token: Any, cache: Any) -> Any:
        return run(
            params, functional.apply_module(module, params, "lm", token[None, None], method="embed"), cache, False
        )

    return jax.jit(lambda params, embeds, cache: run(params, embeds, cache, True)), jax.jit(step)


def decode(config: LmConfig, params: Params, embeds: np.ndarray, recorded: np.ndarray) -> Generated:
    """Decode from ``embeds`` [1 T D] with a cache, feeding the ``recorded`` ids so that a near tie ends nothing."""
    prefill, step = _compiled(config)
    # Rounded, so that runs of one case share a compiled step.
    capacity = -(-(embeds.shape[1] + len(recorded)) // 128) * 128
    out, logits = prefill(params, jnp.asarray(embeds), init_cache(config, 1, capacity))
    hidden, all_logits = [out.hidden[0]], [logits]
    for token in recorded[:-1]:
        out, logits = step(params, jnp.int32(token), out.cache)
        hidden.append(out.hidden[0])
        all_logits.append(logits)
    all_logits = np.stack(all_logits)
    return Generated(all_logits.argmax(-1), all_logits, np.concatenate(hidden))


def margins(logits: np.ndarray) -> np.ndarray:
    """Top-1 minus top-2 logit."""
    top = np.sort(logits, axis=-1)[..., -2:]
    return top[..., 1] - top[..., 0]


def generation(
    report: Report, config: LmConfig, params: Params, run: str, embeds: np.ndarray, tolerance: float
) -> None:
    """Greedy decoding of one prompt."""
    recorded = report.case.outputs[f"{run}.ids"][0]
    ours = decode(config, params, embeds, recorded)
    clear = report.case.outputs[f"{run}.margin"][0] > MARGIN
    report.exact(f"{run}.ids", ours.ids[None], where=clear[None])
    report.close(f"{run}.scores", ours.logits[None], tolerance)
    report.close(f"{run}.margin", margins(ours.logits)[None], tolerance)
    report.close(f"{run}.last_hidden_cat", ours.hidden, tolerance)


def recomputed(
    report: Report, config: LmConfig, params: Params, run: str, embeds: np.ndarray, tolerance: float
) -> None:
    """Greedy decoding without a cache: each step is a pass over prompt and answer, of which all keys are new."""
    recorded = report.case.outputs[f"{run}.ids"][0]
    module = Decoder(config)

    @jax.jit
    def logits(sequence: Any, length: Any) -> Any:
        hidden = functional.apply_module(module, params, "lm", sequence, lengths=length[None]).hidden
        return functional.apply_module(module, params, "lm", hidden[:, length - 1], method="logits")[0]

    answer = functional.apply_module(module, params, "lm", recorded[None].astype(np.int32), method="embed")
    sequence = jnp.concatenate([jnp.asarray(embeds), answer], axis=1)
    ours = np.stack([logits(sequence, jnp.int32(embeds.shape[1] + step)) for step in range(len(recorded))])
    clear = margins(report.case.outputs[f"{run}.scores"][0]) > MARGIN
    report.exact(f"{run}.ids", ours.argmax(-1)[None], where=clear[None])
    report.close(f"{run}.scores", ours[None], tolerance)


def after_a_longer_call(report: Report, config: LmConfig, params: Params, tolerance: float) -> None:
    """The short batch, once the published rotary cache holds the frequencies of the long one.

    Our decoder has no such memory: the case is reached by giving it the base that the long batch had.
    """
    inputs, rope = report.case.inputs, config.rope
    longest = inputs["long_input_ids"].shape[1]
    growth = rope.factor * longest / rope.max_position - (rope.factor - 1)
    base = rope.theta * growth ** (config.head_dim / (config.head_dim - 2))
    kept = replace(config, rope=RopeConfig(theta=base, max_position=rope.max_position))
    mask = inputs["short_attention_mask"].astype(bool)
    _, logits = forward(kept, params, inputs["short_input_ids"], mask)
    report.close("short_after_long.logits", logits, tolerance, where=mask[:, :, None])
