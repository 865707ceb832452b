"""EarthGPT-X (arXiv 2504.12795): natural and Earth-observation data of all sources and tasks in a single stage.

Its encoders are others than EarthMind's and its hyperparameters are not published: the training paradigm is what is
mirrored here, on EarthMind-4B with the paper's optimiser.
"""

from __future__ import annotations

from configs.published import EARTH, GENERAL, PAIRS, PAPER, earthmind_4b, stage
from earthmind_jax.config import LossConfig, RunConfig

# Thousands of samples of each sensor; the sizes of M-RSVP's parts are not published.
PROMPTED = {"mrsvp_optical": 100, "mrsvp_sar": 50, "mrsvp_infrared": 50}


def get_config() -> RunConfig:
    samples = {**GENERAL, **EARTH, **PROMPTED, **PAIRS}
    return stage("single stage", earthmind_4b(), samples, batch=64, optim=PAPER, loss=LossConfig())
