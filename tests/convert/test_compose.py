"""An EarthMind from InternVL and SAM2: published ids, resized vocabulary, new parts from a seed."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from convert.test_convert import HF_LM, chat, lm_tensors, write
from convert.test_layouts import TINY
from safetensors.numpy import save_file

from checkpoints_convert.compose import EMBEDDING, HEAD, compose, resize_vocabulary
from checkpoints_convert.convert import convert
from checkpoints_convert.layouts.sam2 import SAM2
from checkpoints_convert.plan import source_tree
from earthmind_jax.config import EarthMindConfig, FusionConfig
from earthmind_jax.data.tokenizer import CHAT_TOKENS, EARTHMIND_TOKENS, INTERNVL_TOKENS, Tokenizer
from earthmind_jax.errors import UserError
from earthmind_jax.models import earthmind


def base_tokenizer(words: int) -> Tokenizer:
    """``words`` words, then the tokens that InternVL has; those of EarthMind are still to come."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Backend(models.WordLevel({f"w{i}": i for i in range(words)}, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="w1", pad_token="w2"))
    tokenizer.add_tokens((*CHAT_TOKENS, *INTERNVL_TOKENS))
    return tokenizer


@pytest.fixture(scope="module")
def ancestors(tmp_path_factory):
    internvl = chat(tmp_path_factory.mktemp("internvl"))  # 29 rows
    base_tokenizer(29 - len(CHAT_TOKENS) - len(INTERNVL_TOKENS)).save(internvl)
    tree = {p: (x.shape, np.float32) for p, x in earthmind.shapes(TINY).items() if p.startswith("grounding/")}
    rng = np.random.default_rng(0)
    tensors = {n: rng.standard_normal(s).astype(np.float32) for n, (s, _) in source_tree(tree, SAM2.rules).items()}
    sam2 = tmp_path_factory.mktemp("sam2") / "sam2.safetensors"
    save_file(tensors, sam2)
    return internvl, sam2


def test_composed_model_is_whole_and_starts_as_its_ancestors(ancestors):
    internvl, sam2 = ancestors
    fusion = FusionConfig(mode="hca_plus", grounding="fused")
    config, params, tokenizer = compose(internvl, sam2, fusion=fusion, grounding=TINY.grounding, seed=3)
    assert isinstance(config, EarthMindConfig)
    assert config.grounding == TINY.grounding
    assert {path: x.shape for path, x in params.items()} == {p: x.shape for p, x in earthmind.shapes(config).items()}
    assert len(tokenizer) == config.lm.vocab == 29 + len(EARTHMIND_TOKENS)
    assert [tokenizer.id(token) for token in EARTHMIND_TOKENS] == [29, 30, 31, 32, 33]
    tokens = config.tokens
    assert (tokens.seg, tokens.p_start, tokens.vp_end, tokens.image_context) == (29, 30, 33, 22)
    _, before = convert(internvl, fusion=fusion)
    _, masks = convert(sam2, config=TINY.grounding)
    for path, value in {**before, **masks}.items():
        kept = params[path][:29] if path == EMBEDDING else params[path][:, :29] if path == HEAD else params[path]
        np.testing.assert_array_equal(kept, value, err_msg=path)
    assert np.abs(params[EMBEDDING][29:]).min() > 0
    again = compose(internvl, sam2, fusion=fusion, grounding=TINY.grounding, seed=3)[1]
    other = compose(internvl, sam2, fusion=fusion, grounding=TINY.grounding, seed=4)[1]
    drawn = {"text_hidden_fcs/fc1/kernel", "text_hidden_fcs/fc2/kernel", EMBEDDING, HEAD}
    assert drawn <= set(params)
    for path, value in params.items():
        np.testing.assert_array_equal(again[path], value, err_msg=path)
        assert np.array_equal(other[path], value) is (path not in drawn) or path.startswith(("fusion/", "pyramid/"))


def test_new_rows_are_drawn_as_published():
    config = dataclasses.replace(TINY, lm=dataclasses.replace(TINY.lm, embed_init=0.02))
    table = np.ones((7, 500), np.float16)
    grown = resize_vocabulary(table, 0, 107, jax.random.key(0), config)
    assert (grown.shape, grown.dtype) == ((107, 500), np.float16)
    np.testing.assert_array_equal(grown[:7], table)
    new = grown[7:].astype(np.float64)
    assert abs(new.mean()) < 4 * 0.02 / np.sqrt(new.size)
    assert abs(new.std() - 0.02) < 3e-4
    np.testing.assert_array_equal(resize_vocabulary(grown, 0, 7, jax.random.key(0), config), table)
    head = resize_vocabulary(table.T, 1, 9, jax.random.key(0), config)
    np.testing.assert_array_equal(head[:, :7], table.T)
    assert head.shape == (500, 9)


def test_ancestors_that_are_something_else(ancestors, tmp_path):
    internvl, sam2 = ancestors
    options = {"grounding": TINY.grounding}
    with pytest.raises(UserError, match="is not an InternVL checkpoint"):
        compose(write(tmp_path / "lm", lm_tensors(), HF_LM), sam2, **options)
    with pytest.raises(UserError, match="is not a published size"):
        compose(internvl, sam2)
    with pytest.raises(UserError, match="is not a SAM2 checkpoint"):
        compose(internvl, internvl)
    with pytest.raises(UserError, match="There is no tokenizer directory"):
        compose(internvl, sam2, tokenizer=tmp_path / "none", **options)
