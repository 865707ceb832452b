"""One small face for every tokenizer: text to ids, where each id came from, and the ids of the published tokens.

Tokenizers are ordinary Hugging Face directories, read offline; nothing is ever downloaded and no code of a checkpoint
is run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from earthmind_jax.config import SpecialTokens
from earthmind_jax.data import tokenizer_sentencepiece
from earthmind_jax.errors import UserError

IMAGE_START, IMAGE_END, IMAGE_CONTEXT = "<img>", "</img>", "<IMG_CONTEXT>"
SEG = "[SEG]"
CHAT_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
INTERNVL_TOKENS = (IMAGE_START, IMAGE_END, IMAGE_CONTEXT, "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>")
EARTHMIND_TOKENS = (SEG, "<p>", "</p>", "<vp>", "</vp>")

FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt")
CACHE = 65536  # distinct strings whose ids are kept

Spans = tuple[tuple[int, int], ...]
"""(first, after last) character of each token."""


class Tokenizer:
    """A fast Hugging Face tokenizer with the calls that prompts need. Encodings are cached for each distinct string."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self._cache: dict[tuple[str, bool], tuple[tuple[int, ...], Spans]] = {}

    def __len__(self) -> int:
        return len(self.inner)

    def __getstate__(self) -> dict[str, Any]:
        return {"inner": self.inner, "_cache": {}}

    @classmethod
    def load(cls, directory: str | Path) -> Tokenizer:
        """Read a tokenizer directory, as saved by :meth:`save` or beside a published checkpoint.

        ``tokenizer.json`` is taken as it is; without one, ``tokenizer.model`` (sentencepiece: InternLM2, Phi-3), or
        ``vocab.json`` with ``merges.txt`` (Qwen2). Either way no class is guessed and no code of the directory runs.

        Raises:
          UserError: naming the directory, if it holds no tokenizer that can be read.
        """
        directory = Path(directory)
        if not directory.is_dir():
            raise UserError(f"There is no tokenizer directory '{directory}'.")
        config = tokenizer_sentencepiece.read_json(directory / "tokenizer_config.json")
        has = {name for name in FILES if (directory / name).is_file()}
        try:
            if "tokenizer.json" in has:
                from transformers import PreTrainedTokenizerFast as Published
            elif "tokenizer.model" in has:
                return cls(tokenizer_sentencepiece.load(directory, config))
            elif {"vocab.json", "merges.txt"} <= has and config.get("tokenizer_class", "Qwen2").startswith("Qwen2"):
                from transformers import Qwen2Tokenizer as Published
            else:
                raise UserError(
                    f"No tokenizer can be read from '{directory}': it needs a tokenizer.json, or a tokenizer.model, or "
                    "vocab.json and merges.txt of Qwen2."
                )
            return cls(Published.from_pretrained(str(directory), local_files_only=True))
        except UserError:
            raise
        except Exception as error:  # whatever a broken file led to
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(f"The tokenizer in '{directory}' is damaged ({first}): fetch it again.") from error

    def save(self, directory: str | Path) -> None:
        """Write an ordinary Hugging Face tokenizer directory."""
        Path(directory).mkdir(parents=True, exist_ok=True)
        self.inner.save_pretrained(str(directory))

    def encode(self, text: str, *, bos: bool = False) -> list[int]:
        """Ids of ``text``; ``bos`` adds what the tokenizer itself puts at the start of a sequence (often nothing)."""
        return list(self.encode_spans(text, bos=bos)[0])

    def encode_spans(self, text: str, *, bos: bool = False) -> tuple[tuple[int, ...], Spans]:
        """Ids of ``text`` and the characters that each covers (an empty span for an added start token)."""
        key = (text, bos)
        found = self._cache.get(key)
        if found is None:
            try:
                encoding = self.inner.backend_tokenizer.encode(text, add_special_tokens=bos)
            except TypeError as error:  # half of a surrogate pair: bytes of another encoding
                raise UserError(f"This is not valid Unicode text: {text!a}; check the encoding it is in.") from error
            found = tuple(encoding.ids), tuple(encoding.offsets)
            if len(self._cache) >= CACHE:  # another thread may do so, too, so nothing is looked up twice
                self._cache.clear()
            self._cache[key] = found
        return found

    def decode(self, ids: Iterable[int], skip_special: bool = False) -> str:
        """Text of ``ids``, byte for byte (no clean-up of spaces)."""
        return self.inner.decode(
            [int(i) for i in ids], skip_special_tokens=skip_special, clean_up_tokenization_spaces=False
        )

    def id(self, token: str) -> int:
        """The id of a token, or -1 where there is no such token."""
        found = self.inner.backend_tokenizer.token_to_id(token)
        return -1 if found is None else int(found)

    def add_tokens(self, tokens: Sequence[str] = EARTHMIND_TOKENS) -> int:
        """Append the special tokens that are missing, in order; how many were. The published order is the default."""
        from tokenizers import AddedToken

        missing = [AddedToken(t, special=True, normalized=False) for t in tokens if self.id(t) < 0]
        self._cache.clear()
        return int(self.inner.add_tokens(missing, special_tokens=True))

    def special_tokens(self) -> SpecialTokens:
        """The ids that the model config records (padding is the tokenizer's own, else its end token, else 0)."""
        eos = self.inner.eos_token_id
        bos = self.inner.bos_token_id
        pad = self.inner.pad_token_id
        return SpecialTokens(
            pad=pad if pad is not None else eos if eos is not None else 0,
            bos=-1 if bos is None else bos,
            eos=-1 if eos is None else eos,
            image_start=self.id(IMAGE_START),
            image_end=self.id(IMAGE_END),
            image_context=self.id(IMAGE_CONTEXT),
            seg=self.id(SEG),
            p_start=self.id("<p>"),
            p_end=self.id("</p>"),
            vp_start=self.id("<vp>"),
            vp_end=self.id("</vp>"),
        )


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A small byte-level BPE for models trained from scratch, with the published special tokens in published order.

    The same texts give the same tokenizer. Any text can be encoded: the 256 bytes come first, then merges, then
    ``<|endoftext|> <|im_start|> <|im_end|>``, the InternVL tokens and the EarthMind tokens.

    Args:
      vocab_size: ids in all; few texts may yield fewer merges, and so fewer ids.

    Raises:
      UserError: if ``vocab_size`` leaves no room for the bytes and the special tokens.
    """
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = (*CHAT_TOKENS, *INTERNVL_TOKENS, *EARTHMIND_TOKENS)
    if vocab_size < 256 + len(special):
        raise UserError(f"A byte-level vocabulary needs at least {256 + len(special)} ids, not {vocab_size}.")
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(special),
        min_frequency=2,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    backend.train_from_iterator(texts, trainer)
    inner = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False)
    tokenizer = Tokenizer(inner)
    tokenizer.add_tokens(special)
    inner.eos_token, inner.pad_token = "<|im_end|>", "<|endoftext|>"
    return tokenizer
