"""What a language-model family is, and how its published ``config.json`` is read without overlooking anything."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from earthmind_jax.config import LmConfig, RopeConfig, require
from earthmind_jax.errors import UserError

HfConfig = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family of language models; adding one is one file beside this.

    Attributes:
      name: as in ``LmConfig.family``.
      architectures, model_types: published names, by which :func:`families.from_hf` finds the family.
      from_hf: published ``config.json`` (of the language model) -> :class:`LmConfig`; a :class:`UserError` for anything
        that our decoder would compute differently.
      presets: the published sizes by name.
      template: name (in ``data.templates``) of the chat template of EarthMind and Sa2VA models on this family.
      tiny: a toy of the same structure, for tests and demonstrations.
    """

    name: str
    architectures: tuple[str, ...]
    model_types: tuple[str, ...]
    from_hf: Callable[[HfConfig], LmConfig]
    presets: Mapping[str, LmConfig]
    template: str
    tiny: LmConfig


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Fields of a published configuration that do not enter the forward pass.
NEUTRAL = _names(
    """
    _attn_implementation _attn_implementation_autoset _name_or_path architectures attn_implementation auto_map
    bos_token_id chunk_size_feed_forward decoder_start_token_id dtype eos_token_id finetuning_task id2label
    initializer_range is_encoder_decoder keys_to_ignore_at_inference label2id model_type output_attentions
    output_hidden_states pad_token_id prefix pretraining_tp problem_type return_dict sep_token_id task_specific_params
    tokenizer_class torch_dtype torchscript transformers_version unk_token_id use_cache use_flash_attn
    """
) | _names(  # generation settings, which older releases of transformers wrote here
    """
    bad_words_ids begin_suppress_tokens diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size
    exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id length_penalty max_length max_new_tokens
    min_length no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_scores remove_invalid_values
    repetition_penalty return_dict_in_generate suppress_tokens temperature top_k top_p typical_p
    """
)

# Fields that change nothing at these values (and at null).
INERT: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "attention_bias": (False,),
    "attention_dropout": (0.0,),
    "hidden_dropout": (0.0,),
    "resid_pdrop": (0.0,),
    "embd_pdrop": (0.0,),
    "mlp_bias": (False,),
    "partial_rotary_factor": (1.0,),
    "quantization_config": (),
    "pruned_heads": ({},),
}

# Fields that every family reads through :func:`sizes` and :func:`rope`.
COMMON = _names(
    """
    vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim
    rms_norm_eps tie_word_embeddings max_position_embeddings rope_theta rope_scaling rope_parameters
    """
)


def check_fields(config: HfConfig, family: str, known: Iterable[str] = ()) -> None:
    """Refuse fields of ``config`` that nobody reads and that may change the result.

    ``known``: the family's own fields, besides the common, the neutral and the inert ones. A field that nobody knows
    passes if it is null, false or empty, that is, switched off.
    """
    known = COMMON | NEUTRAL | frozenset(known)
    for name, value in config.items():
        if name in known or value is None:
            continue
        if name in INERT:
            require(
                value in INERT[name], f"Cannot convert a {family} model with {name} = {value!r}: it is not supported."
            )
        elif value is not False and value not in ("", [], {}):
            raise UserError(
                f"The {family} configuration has a field '{name}' = {value!r} that is not known here and may change "
                "the result; remove it if it does not matter."
            )


def require_fields(config: HfConfig, family: str, names: Iterable[str]) -> None:
    """Raise a :class:`UserError` naming the fields that ``config`` lacks."""
    missing = [name for name in names if config.get(name) is None]
    require(not missing, f"The {family} configuration lacks {', '.join(missing)}.")


def sizes(config: HfConfig, family: str) -> dict[str, Any]:
    """The sizes that all families spell alike, as fields of :class:`LmConfig`."""
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    require_fields(config, family, names)
    heads, width = config["num_attention_heads"], config["hidden_size"]
    head_dim = config.get("head_dim")
    require(
        head_dim is not None or width % heads == 0,
        f"The {family} configuration has hidden_size {width}, not a multiple of num_attention_heads {heads}.",
    )
    kv_heads = config.get("num_key_value_heads")
    return {
        "vocab": config["vocab_size"],
        "width": width,
        "depth": config["num_hidden_layers"],
        "heads": heads,
        "kv_heads": heads if kv_heads is None else kv_heads,
        "head_dim": width // heads if head_dim is None else head_dim,
        "mlp": config["intermediate_size"],
        "norm_eps": float(config.get("rms_norm_eps", 1e-6)),
        "tie": bool(config.get("tie_word_embeddings", False)),
    }


def rope(config: HfConfig, family: str, *, theta: float, max_position: int) -> RopeConfig:
    """Rotary settings as transformers 4 (``rope_theta``, ``rope_scaling``) and 5 (``rope_parameters``) spell them.

    ``theta`` and ``max_position`` are the family's defaults.
    """
    scaling = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    theta = scaling.pop("rope_theta", None) or config.get("rope_theta") or theta
    kind = scaling.pop("rope_type", None) or scaling.pop("type", None) or "default"
    scaling.pop("type", None)  # written beside rope_type by some releases
    kind = "longrope" if kind == "su" else kind
    require(
        kind in ("default", "linear", "dynamic", "longrope"),
        f"Cannot convert a {family} model with rotary scaling '{kind}'; supported: linear, dynamic, longrope (su).",
    )
    positions = config.get("max_position_embeddings") or max_position
    fields: dict[str, Any] = {"theta": float(theta), "kind": kind, "max_position": positions}
    neutral = {"partial_rotary_factor": 1.0}
    if kind in ("linear", "dynamic"):
        fields["factor"] = float(scaling.pop("factor", 1.0))
    elif kind == "longrope":
        original = scaling.pop("original_max_position_embeddings", None)
        original = config.get("original_max_position_embeddings") or original
        require(original is not None, f"The {family} configuration lacks original_max_position_embeddings.")
        factors = {name: tuple(float(f) for f in scaling.pop(name, ())) for name in ("short_factor", "long_factor")}
        planes = sizes(config, family)["head_dim"] // 2
        require(
            all(len(factor) == planes for factor in factors.values()),
            f"The {family} configuration needs {planes} rotary short and long factors.",
        )
        fields |= {"original_max_position": original, **factors}
        neutral["factor"] = positions / original  # a newer spelling of the same ratio
    left = sorted(name for name, value in scaling.items() if value is not None and neutral.get(name) != value)
    require(not left, f"The {family} configuration has rotary settings that are not known here: {', '.join(left)}.")
    return RopeConfig(**fields)
