"""``i_`` training checkpoints of xtuner on their base: merged as the published export merges them, and kept apart."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from checkpoints_convert.assemble import assemble
from checkpoints_convert.convert import configure, conversion_plan
from checkpoints_convert.plan import apply_plan, export
from checkpoints_convert.verify.recorded.case import Case, Report
from earthmind_jax.config import GroundingConfig, LmConfig
from earthmind_jax.models import functional
from earthmind_jax.models.decoder import Decoder
from earthmind_jax.types import Params

LOGITS = 1e-5  # relative


def xtuner(case: Case, report: Report) -> None:
    """Every merged tensor, through our parameters and back; logits with adapters merged and with adapters apart."""
    tolerance = case.tolerance(1e-6)
    lora = case.config["lora"]
    options: dict[str, Any] = {"base": [case.weights], "lora_scale": lora["lora_alpha"] / lora["r"]}
    # The case leaves SAM2 out: only its width matters, to text_hidden_fcs.
    grounding = GroundingConfig(width=case.config["seg_dim"], decoder_heads=1)
    logits = {}
    for merge in (True, False):
        assembled = assemble(case.path / "iter_tiny.pth", merge=merge, **options)
        layout, config = configure(assembled, case.config, grounding=grounding)
        plan = conversion_plan(assembled.source, layout, config)
        params = apply_plan(plan, assembled.source)
        assert any(path.startswith("lora/") for path in params) is not merge
        logits[merge] = _logits(config.lm, params, case.inputs["input_ids"])
        if merge:
            ours = dict(export(plan, params))
    for name in case.outputs:
        if name.startswith("merged."):
            report.close(name, ours[name.removeprefix("merged.")], tolerance)
    # The README's 1e-6 is that of the merged tensors. Logits recorded in float32 are themselves several 1e-6 from what
    # the same weights give in float64, so they are held relative to the largest.
    for ours in logits.values():
        report.relative("logits", ours, LOGITS)


def _logits(config: LmConfig, params: Params, ids: np.ndarray) -> np.ndarray:
    decoder = Decoder(config)

    @jax.jit
    def run(params: Params, ids: Any) -> Any:
        embeds = functional.apply_module(decoder, params, "lm", ids, method="embed")
        hidden = functional.apply_module(decoder, params, "lm", embeds).hidden
        return functional.apply_module(decoder, params, "lm", hidden, method="logits")

    return np.asarray(run(params, ids.astype(np.int32)))
