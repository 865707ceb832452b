"""Conversations to token ids, in the published words.

The strings are those of :mod:`earthmind_jax.data.templates` and of the functions below; :func:`build` turns a
conversation into ids, masks and the index of visual rows. Ids are made at the published boundaries: one encoding for
the instruction text of a turn (template, image block, regions, question), another for the answer with the template's
suffix. A run of ``<IMG_CONTEXT>`` is encoded as one token and repeated afterwards, which gives the same ids in far less
time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from earthmind_jax.data.templates import Template, get_template
from earthmind_jax.data.tokenizer import IMAGE_CONTEXT, IMAGE_END, IMAGE_START, SEG, Tokenizer
from earthmind_jax.errors import UserError

IMAGE = "<image>"
"""Where a question wants its image block; put before the first question where it is not written."""

_STEMS = (
    "Can you segment the {c} in this image?",
    "Please segment {c} in this image.",
    "What is {c} in this image? Please respond with segmentation mask.",
    "What is {c} in this image? Please output segmentation mask.",
    "Could you provide a segmentation mask for the {c} in this image?",
    "Please identify and segment the {c} in this image.",
    "Where is the {c} in this picture? Please respond with a segmentation mask.",
    "Can you highlight the {c} in this image with a segmentation mask?",
)
SEGMENTATION_QUESTIONS = _STEMS + tuple(stem[:-1] for stem in _STEMS)
"""Published question stems, ``{c}`` the phrase, each with and without its last punctuation mark."""

SEGMENTATION_ANSWERS = (
    "It is [SEG].",
    "Sure, [SEG].",
    "Sure, it is [SEG].",
    "Sure, the segmentation result is [SEG].",
    "[SEG].",
)


def image_block(counts: Sequence[int]) -> str:
    """``<img>`` + ``<IMG_CONTEXT>`` * count + ``</img>`` for each count; several joined by newlines."""
    return "\n".join(f"{IMAGE_START}{IMAGE_CONTEXT * count}{IMAGE_END}" for count in counts)


def region_string(counts: Sequence[int]) -> str:
    """The published sentence that introduces marked regions, ``counts`` visual tokens each; empty without regions."""
    if not counts:
        return ""
    regions = ", ".join(f"region{i}<vp>{IMAGE_CONTEXT * count}</vp>" for i, count in enumerate(counts, 1))
    return f"\nThere are {len(counts)} part regions in the picture: {regions}.\n"


def name_regions(question: str, names: Sequence[str]) -> str:
    """The question with each ``{region}`` replaced by the next of ``names``, and by the last where there are more."""
    if not names:
        return question
    first, *rest = question.split("{region}")
    return first + "".join(names[min(i, len(names) - 1)] + part for i, part in enumerate(rest))


@dataclass(frozen=True)
class Prompt:
    """A conversation as arrays of length T; ``seg`` are the positions of ``[SEG]`` in answers, in order."""

    tokens: Int[np.ndarray, " T"]
    loss_mask: Bool[np.ndarray, " T"]
    question: Bool[np.ndarray, " T"]
    visual_index: Int[np.ndarray, " T"]
    seg: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.tokens)


def build(
    turns: Sequence[tuple[str, str | None]],
    tokenizer: Tokenizer,
    template: str | Template = "phi3_chat",
    *,
    visual: Sequence[Sequence[int]] = (),
    regions: Sequence[Sequence[int]] = (),
    variant: str = "hf",
    separator: bool | None = None,
) -> Prompt:
    """A conversation as token ids, with what is to be predicted and which visual rows go where.

    Args:
      turns: (question, answer); the last answer may be None, and the prompt then ends where generation starts.
      visual: rows of the fused visual sequence for each image block (one block, except for frames of a video).
      regions: rows for each marked region, introduced after the image block as region1, region2, ...
      variant: ``hf`` (published inference) or ``train`` (published training: no newline before ``<|assistant|>``, and
        regions before a question stripped of its leading newline).
      separator: put the template's separator, not predicted, after each answer; None: where there are regions, as in
        the published region data.

    Returns:
      ``loss_mask`` covers answers with their suffix; ``question`` covers the user's own words and nothing of template,
      image or regions; ``visual_index`` is -1 at text. A start token is added if the tokenizer itself adds one.

    Raises:
      UserError: for a misplaced ``<image>``, reserved tokens in a question, an answer missing before the last turn.
    """
    form = get_template(template) if isinstance(template, str) else template
    before, after = form.around(variant)
    if not turns:
        raise UserError("A conversation needs at least one turn.")
    if any(answer is None for _, answer in turns[:-1]):
        raise UserError("Only the last turn of a conversation may lack an answer.")
    _check_questions([question for question, _ in turns], bool(visual))
    if regions and not visual:
        raise UserError("A marked region needs an image.")
    if separator is None:
        separator = bool(regions)
    rows = [np.asarray(r, np.int32) for r in (*visual, *regions)]
    parts = _Parts()
    for i, (question, answer) in enumerate(turns):
        insert = ""
        if i == 0 and visual:
            if IMAGE not in question:
                question = f"{IMAGE}\n{question}"
            insert = image_block([1] * len(visual)) + region_string([1] * len(regions))
            if variant == "train" and regions:
                question = f"{IMAGE}{question.replace(IMAGE, '').strip()}"
        pieces = question.split(IMAGE)
        text, spans = _compose(before, pieces, insert, after)
        if i == 0 and form.opening:
            text = form.opening + text
            spans = [(start + len(form.opening), end + len(form.opening)) for start, end in spans]
        ids, offsets = tokenizer.encode_spans(text, bos=i == 0)
        parts.instruction(ids, offsets, spans, rows if insert else [], tokenizer.id(IMAGE_CONTEXT))
        if answer is not None:
            ids, _ = tokenizer.encode_spans(answer + form.suffix)
            parts.answer(ids, tokenizer.id(SEG))
            if separator:
                parts.unsupervised(tokenizer.encode_spans(form.separator)[0])
    return parts.prompt()


def _check_questions(questions: Sequence[str], has_image: bool) -> None:
    for i, question in enumerate(questions):
        for token in (IMAGE_START, IMAGE_END, IMAGE_CONTEXT):
            if token in question:
                raise UserError(f"A question may not contain the reserved token {token}: '{question}'.")
        if has_image and question.count(IMAGE) > (1 if i == 0 else 0):
            raise UserError(f"Only the first question may say {IMAGE}, and once: '{question}'.")


def _compose(before: str, pieces: Sequence[str], insert: str, after: str) -> tuple[str, list[tuple[int, int]]]:
    """The instruction text, and where the user's own words (outer whitespace excluded) lie in it."""
    text, spans = before, []
    for i, piece in enumerate(pieces):
        text += insert if i else ""
        start = len(text) + len(piece) - len(piece.lstrip())
        text += piece
        if piece.strip():
            spans.append((start, start + len(piece.strip())))
    return text + after, spans


class _Parts:
    """Collects the pieces of a prompt."""

    def __init__(self) -> None:
        self.tokens: list[np.ndarray] = []
        self.loss: list[np.ndarray] = []
        self.question: list[np.ndarray] = []
        self.visual: list[np.ndarray] = []
        self.seg: list[int] = []
        self.length = 0

    def instruction(
        self,
        ids: Sequence[int],
        offsets: Sequence[tuple[int, int]],
        spans: Sequence[tuple[int, int]],
        rows: Sequence[np.ndarray],
        context: int,
    ) -> None:
        """Instruction ids, each single ``<IMG_CONTEXT>`` replaced by one for each of its rows."""
        tokens = np.asarray(ids, np.int32)
        first, last = np.asarray(offsets, np.int64).reshape(-1, 2).T
        own = np.zeros(len(tokens), bool)
        for start, end in spans:
            own |= (first < end) & (last > start)
        places = np.flatnonzero(tokens == context)
        if len(places) != len(rows):
            raise UserError(f"The tokenizer must have the single token {IMAGE_CONTEXT} to read images.")
        repeats = np.ones(len(tokens), np.int64)
        repeats[places] = [len(r) for r in rows]
        visual = np.full(int(repeats.sum()), -1, np.int32)
        expanded = np.repeat(tokens, repeats)
        if len(rows):
            visual[expanded == context] = np.concatenate(rows)
        self._add(expanded, np.zeros(len(expanded), bool), np.repeat(own, repeats), visual)

    def answer(self, ids: Sequence[int], seg: int) -> None:
        tokens = np.asarray(ids, np.int32)
        if seg >= 0:
            self.seg += (self.length + np.flatnonzero(tokens == seg)).tolist()
        self._add(tokens, np.ones(len(tokens), bool))

    def unsupervised(self, ids: Sequence[int]) -> None:
        self._add(np.asarray(ids, np.int32), np.zeros(len(ids), bool))

    def _add(
        self, tokens: np.ndarray, loss: np.ndarray, question: np.ndarray | None = None, visual: np.ndarray | None = None
    ) -> None:
        self.length += len(tokens)
        self.tokens.append(tokens)
        self.loss.append(loss)
        self.question.append(np.zeros(len(tokens), bool) if question is None else question)
        self.visual.append(np.full(len(tokens), -1, np.int32) if visual is None else visual)

    def prompt(self) -> Prompt:
        join = np.concatenate
        return Prompt(join(self.tokens), join(self.loss), join(self.question), join(self.visual), tuple(self.seg))
