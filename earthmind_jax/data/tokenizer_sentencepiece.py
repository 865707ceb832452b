"""A sentencepiece ``tokenizer.model`` (InternLM2, Phi-3) as a tokenizer of the ``tokenizers`` library.

The published class of InternLM2 is code of its checkpoint, which is never run: the model file and
``tokenizer_config.json`` say everything. Only byte-pair models are read, which is what the published ones are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from earthmind_jax.config import require
from earthmind_jax.errors import UserError

SPACE = "▁"  # how sentencepiece writes a blank

# Kinds of pieces and of models, as numbered in the model file.
NORMAL, USER_DEFINED = 1, 4
BPE = 2


def load(directory: Path, config: Mapping[str, Any]) -> Any:
    """The tokenizer of ``directory/tokenizer.model`` as transformers' fast class.

    Args:
      directory: of a published checkpoint; ``added_tokens.json`` is read where the configuration lists no tokens.
      config: its ``tokenizer_config.json``: added tokens with their ids, names of start, end, padding and unknown.

    Raises:
      UserError: a file cannot be read, or an added token would not get the id that the configuration gives it.
    """
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    model = read_model(directory / "tokenizer.model")
    added = {int(i): AddedToken(**_fields(token)) for i, token in config.get("added_tokens_decoder", {}).items()}
    if not added:
        listed = read_json(directory / "added_tokens.json")
        added = {i: AddedToken(token, special=True, normalized=False) for token, i in listed.items()}
    inner = backend(model, {i: token.content for i, token in added.items() if i < len(model.pieces)})
    for _, token in sorted(added.items()):
        inner.add_tokens([token])
    for i, token in added.items():
        found = inner.token_to_id(token.content)
        require(
            found == i,
            f"The tokenizer in '{directory}' cannot give '{token.content}' the id {i} that its configuration says: it "
            f"would be {found}; tokenizer.model and tokenizer_config.json do not belong together.",
        )
    trainer = model.trainer_spec
    ids = {"bos_token": trainer.bos_id, "eos_token": trainer.eos_id, "unk_token": trainer.unk_id}
    names = {name: model.pieces[i].piece for name, i in ids.items() if i >= 0}
    names |= {name: _content(config[name]) for name in (*ids, "pad_token") if config.get(name)}
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        add_bos_token=config.get("add_bos_token", True),  # the default of the published classes
        add_eos_token=config.get("add_eos_token", False),
        clean_up_tokenization_spaces=False,
        **names,
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; {} where there is no file.

    Raises:
      UserError: the file holds something else.
    """
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"'{path}' is not valid JSON ({error}): fetch it again.") from error
    require(isinstance(value, dict), f"'{path}' does not hold a JSON object: fetch it again.")
    return value


def _content(token: str | Mapping[str, Any]) -> str:
    return token if isinstance(token, str) else token["content"]


def _fields(token: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in token.items() if not name.startswith("__")}


def read_model(path: Path) -> Any:
    """The parsed file.

    Raises:
      UserError: it is damaged, of another kind, or sentencepiece is not installed.
    """
    try:
        from google.protobuf.message import DecodeError
        from sentencepiece import sentencepiece_model_pb2
    except ImportError as error:
        raise UserError(f"Reading '{path}' needs the [convert] extra (sentencepiece).") from error
    model = sentencepiece_model_pb2.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError:
        model.Clear()
    require(bool(model.pieces), f"'{path}' is not a sentencepiece model, or it is cut short: fetch it again.")
    trainer = model.trainer_spec
    require(trainer.model_type == BPE, f"'{path}' is a sentencepiece model of another kind than BPE.")
    require(not trainer.treat_whitespace_as_suffix, f"'{path}' marks the ends of words, which is not supported.")
    return model


def backend(model: Any, renamed: Mapping[int, str]) -> Any:
    """The ``tokenizers.Tokenizer`` of a parsed model.

    It gives the ids that sentencepiece gives, but for user-defined pieces of a model that puts a blank before every
    text: they are spelled out.

    Args:
      model: from :func:`read_model`.
      renamed: pieces that ``tokenizer_config.json`` gives another name, by id (InternLM2's chat tokens take the place
        of unused ones).
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    pieces = [renamed.get(i, piece.piece) for i, piece in enumerate(model.pieces)]
    joined = [piece for i, piece in enumerate(model.pieces) if piece.type == NORMAL and i not in renamed]
    joined.sort(key=lambda piece: -piece.score)
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: i for i, piece in enumerate(pieces)},
            merges=_merges([piece.piece for piece in joined]),
            unk_token=pieces[model.trainer_spec.unk_id],
            fuse_unk=True,
            byte_fallback=model.trainer_spec.byte_fallback,
        )
    )
    spec = model.normalizer_spec
    steps: list[Any] = [normalizers.Precompiled(spec.precompiled_charsmap)] if spec.precompiled_charsmap else []
    if spec.remove_extra_whitespaces:
        from tokenizers import Regex

        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE if spec.escape_whitespaces else " "))
    if spec.escape_whitespaces:
        steps.append(normalizers.Replace(" ", SPACE))
    tokenizer.normalizer = normalizers.Sequence(steps)
    strip = [decoders.Strip(" ", 1, 0)] if spec.add_dummy_prefix or spec.remove_extra_whitespaces else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    if not spec.add_dummy_prefix:  # the blank would be put before these pieces as well
        whole = [p for i, p in enumerate(pieces) if model.pieces[i].type == USER_DEFINED and i not in renamed]
        tokenizer.add_tokens([AddedToken(piece, normalized=True) for piece in whole if " " not in piece])
    return tokenizer


def _merges(pieces: Sequence[str]) -> list[tuple[str, str]]:
    """Every way to join two pieces into a third, in the order of the third: sentencepiece joins the best one first."""
    known = set(pieces)
    return [
        (piece[:cut], piece[cut:])
        for piece in pieces
        for cut in range(1, len(piece))
        if piece[:cut] in known and piece[cut:] in known
    ]
