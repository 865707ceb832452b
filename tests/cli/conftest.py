"""What the commands are tried on."""

from __future__ import annotations

from pathlib import Path

import jax
import pytest

from configs import tiny
from earthmind_jax import checkpoint
from earthmind_jax.data.collate import with_tokens
from earthmind_jax.data.simulate import make_scene, write_scene
from earthmind_jax.data.tokenizer import train_bpe
from earthmind_jax.models import api


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tiny random checkpoint and a simulated pair."""
    root = tmp_path_factory.mktemp("cli")
    tokenizer = train_bpe(["Is there water in the image? Please segment the water."] * 3, 300)
    config = with_tokens(tiny.model(), tokenizer)
    params = jax.jit(lambda: api.init(config, jax.random.key(0)))()
    checkpoint.save(root / "model", config, params, tokenizer, {"made": "for tests"})
    write_scene(make_scene(3, size=48, gsd=10.0, nodata=0.0), root, "a")
    write_scene(make_scene(4, size=48, gsd=10.0, nodata=0.0), root, "somewhere else")
    return root
