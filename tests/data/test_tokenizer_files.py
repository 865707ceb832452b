"""Published tokenizer files: sentencepiece models, Qwen2's vocabulary and merges, added tokens with their ids."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from earthmind_jax.data import prompts
from earthmind_jax.data.tokenizer import EARTHMIND_TOKENS, INTERNVL_TOKENS, Tokenizer
from earthmind_jax.errors import UserError

sentencepiece = pytest.importorskip("sentencepiece")

WORDS = ("river", "lake", "harbour", "ship", "the", "a", "segment", "please", "where", "is", "in", "this", "image")
LETTERS = " aeioubcdxyzRI019.,?\n\t<>漢éü☂▁  "
PUBLISHED = {  # length before <img>; then the ids of <img>, </img>, <IMG_CONTEXT> and of [SEG] to </vp>
    "InternVL2-1B": (151646, (151646, 151647, 151648), range(151655, 151660)),
    "InternVL2_5-4B": (151665, (151665, 151666, 151667), range(151674, 151679)),
    "InternVL2-8B": (92544, (92544, 92545, 92546), range(92553, 92558)),
    "InternVL2-4B": (32011, (32011, 32012, 32013), range(32020, 32025)),
}


def texts(count, seed=0):
    """Sentences of a few words, and random letters in turn."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        if i % 2:
            yield "".join(rng.choice(list(LETTERS), rng.integers(0, 30)))
        else:
            yield " ".join(rng.choice(WORDS, 8)).capitalize() + "? 12.5 Ünder 漢字.\n"


def trained(directory, **options):
    """A small sentencepiece model of ``directory``, in the form of the published ones unless ``options`` differ."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=texts(400, 1),
        model_prefix=str(directory / "tokenizer"),
        minloglevel=2,
        **{
            "model_type": "bpe",
            "vocab_size": 400,
            "byte_fallback": True,
            "split_digits": True,
            "character_coverage": 0.99,
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            "add_dummy_prefix": False,
            **options,
        },
    )
    return sentencepiece.SentencePieceProcessor(str(directory / "tokenizer.model"))


def entry(token, special=True):
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    return {"content": token, "special": special, **flags}


def write(directory, added=(), **options):
    """``tokenizer_config.json`` with ``added`` (id, token) and other fields."""
    config = {"added_tokens_decoder": {str(i): entry(token) for i, token in added}, **options}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"add_dummy_prefix": True},
        {"add_dummy_prefix": True, "normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True},
        {"byte_fallback": False},
        {"user_defined_symbols": ["[UNUSED_1]", "lake ha"]},
    ],
    ids=["plain", "prefix", "normalised", "unknown", "symbols"],
)
def test_ids_and_texts_are_those_of_sentencepiece(options, tmp_path):
    reference = trained(tmp_path, **options)
    tokenizer = Tokenizer.load(tmp_path)
    assert len(tokenizer) == len(reference)
    for text in (*texts(400, 2), "a [UNUSED_1] lake", "[UNUSED_1][UNUSED_1]x"):
        ids = tokenizer.encode(text)
        assert ids == reference.encode(text), text
        assert tokenizer.encode(text, bos=True) == [reference.bos_id(), *ids]
        if reference.unk_id() not in ids:
            assert tokenizer.decode(ids) == reference.decode(ids), text


@pytest.fixture(params=[False, True], ids=["plain", "prefix"])
def internlm2(request, tmp_path):
    """A checkpoint directory as InternLM2 publishes it: chat tokens on unused pieces, image tokens behind them."""
    unused = [f"[UNUSED_TOKEN_{i}]" for i in range(2)]
    reference = trained(tmp_path, user_defined_symbols=unused, add_dummy_prefix=request.param)
    chat = zip((reference.piece_to_id(piece) for piece in unused), ("<|im_end|>", "<|im_start|>"), strict=True)
    image = enumerate(INTERNVL_TOKENS, len(reference))
    write(
        tmp_path,
        [(0, "<unk>"), (1, "<s>"), (2, "</s>"), *chat, *image],
        auto_map={"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]},
        tokenizer_class="InternLM2Tokenizer",
        bos_token="<s>",
        eos_token=entry("</s>"),
        pad_token="</s>",
    )
    (tmp_path / "tokenization_internlm2.py").write_text("raise SystemExit('code of a checkpoint was run')\n")
    return tmp_path, reference


def test_an_internlm2_checkpoint(internlm2, tmp_path):
    directory, reference = internlm2
    size = len(reference)
    tokenizer = Tokenizer.load(directory)
    assert len(tokenizer) == size + len(INTERNVL_TOKENS)
    assert tokenizer.add_tokens() == len(EARTHMIND_TOKENS)
    assert tokenizer.id("<|im_start|>") == reference.piece_to_id("[UNUSED_TOKEN_1]")
    assert [tokenizer.id(token) for token in INTERNVL_TOKENS] == list(range(size, size + 9))
    assert [tokenizer.id(token) for token in EARTHMIND_TOKENS] == list(range(size + 9, size + 14))
    special = tokenizer.special_tokens()
    assert (special.bos, special.eos, special.pad) == (1, 2, 2)

    prompt = prompts.build(
        [("<image>\nWhere is the lake?", "It is [SEG].")], tokenizer, "internlm2_chat", visual=[range(5)]
    )
    ours = {token: tokenizer.id(token) for token in ("<|im_start|>", "<|im_end|>", "<img>", "</img>", "[SEG]")}
    context = tokenizer.id("<IMG_CONTEXT>")
    expected = [1, ours["<|im_start|>"], *reference.encode("user\n"), ours["<img>"], *[context] * 5, ours["</img>"]]
    expected += [*reference.encode("\nWhere is the lake?"), ours["<|im_end|>"], *reference.encode("\n")]
    expected += [ours["<|im_start|>"], *reference.encode("assistant\n")]
    answer = [*reference.encode("It is "), ours["[SEG]"], *reference.encode("."), ours["<|im_end|>"]]
    assert prompt.tokens.tolist() == expected + answer
    assert tokenizer.decode(prompt.tokens[prompt.question]).strip() == "Where is the lake?"
    assert np.flatnonzero(prompt.loss_mask).tolist() == list(range(len(expected), len(expected + answer)))


def test_a_saved_tokenizer_needs_nothing_else(internlm2, tmp_path):
    directory, _ = internlm2
    tokenizer = Tokenizer.load(directory)
    tokenizer.add_tokens()
    tokenizer.save(tmp_path / "saved" / "tokenizer")
    for path in directory.iterdir():
        if path.is_file():
            path.unlink()
    again = Tokenizer.load(tmp_path / "saved" / "tokenizer")
    assert again.special_tokens() == tokenizer.special_tokens()
    for text in (*texts(50, 3), "<|im_start|>user\n[SEG]<|im_end|>"):
        for bos in (False, True):
            assert again.encode_spans(text, bos=bos) == tokenizer.encode_spans(text, bos=bos)
        assert again.decode(again.encode(text)) == tokenizer.decode(tokenizer.encode(text))


def test_added_tokens_json(tmp_path):
    size = len(trained(tmp_path))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"</img>": size + 1, "<img>": size}))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.encode("<img></img>") == [size, size + 1]


def byte_level(directory):
    """Qwen2's files of a tiny vocabulary, and the same tokenizer put together by hand."""
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Backend

    splits = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    )
    reference = Backend(models.BPE())
    reference.normalizer = normalizers.NFC()
    reference.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(splits), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    reference.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    reference.train_from_iterator(texts(400, 1), trainers.BpeTrainer(initial_alphabet=alphabet, vocab_size=350))
    reference.model.save(str(directory))
    return reference


def test_qwen2_vocabulary_and_merges(tmp_path):
    reference = byte_level(tmp_path)
    size = reference.get_vocab_size()
    chat = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    write(
        tmp_path,
        enumerate((*chat, *INTERNVL_TOKENS), size),
        tokenizer_class="Qwen2Tokenizer",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        bos_token=None,
    )
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.add_tokens() == 5
    assert [tokenizer.id(token) for token in (*chat, *INTERNVL_TOKENS, *EARTHMIND_TOKENS)] == list(
        range(size, size + 17)
    )
    special = tokenizer.special_tokens()
    assert (special.pad, special.bos, special.eos) == (size, -1, size + 2)
    for text in texts(400, 2):
        assert tokenizer.encode(text) == tokenizer.encode(text, bos=True) == reference.encode(text).ids
    assert tokenizer.encode("<|im_end|>\nlake") == [size + 2, *reference.encode("\nlake").ids]
    tokenizer.save(tmp_path / "saved")
    again = Tokenizer.load(tmp_path / "saved")
    assert again.special_tokens() == special
    for text in texts(40, 3):
        assert again.encode(text) == tokenizer.encode(text)


@pytest.mark.parametrize("name", PUBLISHED)
def test_tokens_are_added_with_their_published_ids(name):
    from tokenizers import Tokenizer as Backend
    from tokenizers import models
    from transformers import PreTrainedTokenizerFast

    size, image, grounding = PUBLISHED[name]
    backend = Backend(models.BPE(vocab={f"word{i}": i for i in range(size)}, merges=[]))
    tokenizer = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend))
    assert tokenizer.add_tokens(INTERNVL_TOKENS) == 9
    assert tokenizer.add_tokens() == 5
    assert tuple(tokenizer.id(token) for token in INTERNVL_TOKENS[:3]) == image
    assert tuple(tokenizer.id(token) for token in ("[SEG]", "<p>", "</p>", "<vp>", "</vp>")) == tuple(grounding)
    assert len(tokenizer) == grounding[-1] + 1


def test_broken_files_are_named(tmp_path):
    reference = trained(tmp_path)
    whole = (tmp_path / "tokenizer.model").read_bytes()
    wrong = [(len(reference) + 7, "<img>")]
    write(tmp_path, wrong)
    with pytest.raises(UserError, match="'<img>' the id 407"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer_config\.json' is not valid JSON"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    for damaged in (whole[: len(whole) // 2], b"", b"<html>not found</html>"):
        (tmp_path / "tokenizer.model").write_bytes(damaged)
        with pytest.raises(UserError, match=r"tokenizer\.model' is not a sentencepiece model"):
            Tokenizer.load(tmp_path)
    trained(tmp_path, model_type="unigram", vocab_size=330)
    with pytest.raises(UserError, match="another kind than BPE"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(UserError, match="is damaged"):
        Tokenizer.load(tmp_path)


def test_broken_vocabularies_are_named(tmp_path):
    byte_level(tmp_path)
    write(tmp_path, tokenizer_class="GPT2Tokenizer")
    with pytest.raises(UserError, match=r"merges\.txt of Qwen2"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    shutil.copy(tmp_path / "vocab.json", tmp_path / "kept")
    (tmp_path / "vocab.json").write_text("[1, 2")
    with pytest.raises(UserError, match="is damaged"):
        Tokenizer.load(tmp_path)
    shutil.copy(tmp_path / "kept", tmp_path / "vocab.json")
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(UserError, match=r"vocab\.json and merges\.txt"):
        Tokenizer.load(tmp_path)
