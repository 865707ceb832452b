"""The recipe that teaches a model of words to be pointed at (``configs/pointing.py``), on a toy model."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np
import support

from configs import demo, pointing
from earthmind_jax.models import api
from earthmind_jax.train.marks import pointing as marks_of
from earthmind_jax.train.run import load_stages
from earthmind_jax.train.state import assignment, build
from earthmind_jax.train.step import train_step

GAUSSIAN = "grounding/prompt/gaussian"


def test_the_mask_decoder_alone_learns_to_be_pointed_at():
    """The code of places is scaled once, the decoder and the points' own tokens learn, words and marks are drawn in one
    step, and both stages fit the demo's model. The step is traced, not compiled; other tests run steps."""
    config, batch = support.model("average"), support.scenes(support.model("average"), 2)
    params = support.params(config)
    stages = load_stages(Path(pointing.__file__))
    for stage, scale, shapes in zip(stages, (pointing.SMOOTHER, 1.0), (1.0, 0.0), strict=True):
        run = dataclasses.replace(stage, model=config)
        state = build(run, params)
        np.testing.assert_allclose(state.params[GAUSSIAN], scale * params[GAUSSIAN], rtol=1e-6)
        marks = jax.eval_shape(lambda run=run: marks_of(jax.random.key(0), batch, run))
        assert marks.targets.shape[:2] == (len(batch.tokens), stage.loss.marks)
        assert stage.loss.mark_shapes == shapes
        _, metrics = jax.eval_shape(lambda state, run=run: train_step(run, state, batch), state)
        kinds = {f"{kind}_{term}" for kind in ("mark", "phrase") for term in ("bce", "dice", "contrast")}
        assert set(metrics) == kinds | {"loss", "grad_norm", "padding"}
        table = assignment(dataclasses.replace(stage, model=demo.model()))
        learns = {path for path, group in table.index.items() if table.groups[group].learning_rate}
        assert learns == {path for path in api.shapes(demo.model()) if path.startswith("grounding/decoder/")} | {
            "grounding/prompt/points"
        }
