"""The tokenizer wrapper, and the byte-level BPE for models trained from scratch."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest

from earthmind_jax.data.tokenizer import CHAT_TOKENS, EARTHMIND_TOKENS, INTERNVL_TOKENS, Tokenizer, train_bpe
from earthmind_jax.errors import UserError

GOLDENS = Path(os.environ.get("EARTHMIND_GOLDENS", Path(__file__).parents[3] / "shared" / "goldens"))
CASES = sorted(GOLDENS.glob("e_e2e_*")) if GOLDENS.is_dir() else []
TEXTS = ["Please segment the river in this image.", "Is there a river? Yes, there is a wide river.", "It is [SEG]."] * 3


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return train_bpe(TEXTS, 310)


def test_bytes_then_merges_then_special_tokens(bpe):
    assert len(bpe) == 310
    special = (*CHAT_TOKENS, *INTERNVL_TOKENS, *EARTHMIND_TOKENS)
    assert [bpe.id(token) for token in special] == list(range(310 - len(special), 310))
    assert bpe.encode("<IMG_CONTEXT>[SEG]") == [bpe.id("<IMG_CONTEXT>"), bpe.id("[SEG]")]
    tokens = bpe.special_tokens()
    assert (tokens.eos, tokens.pad, tokens.bos) == (bpe.id("<|im_end|>"), bpe.id("<|endoftext|>"), -1)
    assert (tokens.seg, tokens.vp_end, tokens.image_context) == (305, 309, bpe.id("<IMG_CONTEXT>"))


def test_any_text_survives(bpe):
    for text in ("river  river\n", "Ünïcode ☂ 漢字", "<|user|>\n<img></img> [SEG].", ""):
        assert bpe.decode(bpe.encode(text)) == text
    assert bpe.decode(bpe.encode("It is [SEG]."), skip_special=True) == "It is ."


def test_spans_name_the_characters(bpe):
    text = "Where is the river? [SEG]"
    ids, spans = bpe.encode_spans(text)
    assert "".join(text[a:b] for a, b in spans) == text
    assert len(ids) == len(spans)


def test_training_is_deterministic(bpe):
    again = train_bpe(iter(TEXTS), 310)
    assert again.inner.get_vocab() == bpe.inner.get_vocab()
    assert again.encode(TEXTS[0]) == bpe.encode(TEXTS[0])
    assert len(train_bpe(["ab"], 2000)) < 2000


def test_saved_as_an_ordinary_directory(bpe, tmp_path):
    from transformers import AutoTokenizer

    bpe.save(tmp_path / "tokenizer")
    again = Tokenizer.load(tmp_path / "tokenizer")
    assert again.special_tokens() == bpe.special_tokens()
    plain = AutoTokenizer.from_pretrained(str(tmp_path / "tokenizer"))
    for text in TEXTS:
        assert again.encode(text) == bpe.encode(text) == plain.encode(text)
    copy = pickle.loads(pickle.dumps(bpe))
    assert copy.encode(TEXTS[1]) == bpe.encode(TEXTS[1])


def test_unknown_tokens_and_errors(bpe, tmp_path):
    assert bpe.id("<nothing>") == -1
    with pytest.raises(UserError, match="no tokenizer directory"):
        Tokenizer.load(tmp_path / "absent")
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)
    with pytest.raises(UserError, match="at least 273"):
        train_bpe(TEXTS, 100)


def test_missing_tokens_are_appended_in_order(tmp_path):
    tokenizer = train_bpe(TEXTS, 310)
    assert tokenizer.add_tokens() == 0
    assert tokenizer.add_tokens(("<new>", "[SEG]", "<other>")) == 2
    assert (tokenizer.id("<new>"), tokenizer.id("<other>")) == (310, 311)


@pytest.mark.skipif(not CASES, reason="no recorded outputs")
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_recorded_token_ids(case):
    config = json.loads((case / "config.json").read_text())
    tokenizer, ids = Tokenizer.load(case), config["token_ids"]
    tokens = tokenizer.special_tokens()
    assert (tokens.seg, tokens.image_context, tokens.eos) == (ids["seg"], ids["img_context"], ids["eos"])
    assert tokens.pad == ids["pad"]
    assert tokens.bos == (-1 if ids["bos"] is None else ids["bos"])
    plain = tokenizer.inner
    for run in config["runs"].values():
        assert tokenizer.encode(run["text"], bos=True) == plain.encode(run["text"])
        assert tokenizer.encode(run["text"]) == plain.encode(run["text"], add_special_tokens=False)
