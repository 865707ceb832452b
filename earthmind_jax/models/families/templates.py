"""Chat templates by the names that published configurations use."""

from __future__ import annotations

from dataclasses import dataclass

from earthmind_jax.config import one_of


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """How one turn is written. EarthMind and Sa2VA always use an empty system prompt, which writes nothing.

    Attributes:
      instruction: the user's turn up to where the answer begins; ``{input}`` is the question.
      system: wraps a system prompt ``{system}``, put before the first turn.
      suffix: ends an answer (training targets include it).
      separator: between an answer's suffix and the next turn.
      stop: generation ends once the decoded answer ends with one of these.
    """

    instruction: str
    system: str = ""
    suffix: str = ""
    separator: str = "\n"
    stop: tuple[str, ...] = ()


_CHATML = ChatTemplate(
    instruction="<|im_start|>user\n{input}<|im_end|>\n<|im_start|>assistant\n",
    system="<|im_start|>system\n{system}<|im_end|>\n",
    suffix="<|im_end|>",
    stop=("<|im_end|>",),
)

TEMPLATES = {
    "phi3_chat": ChatTemplate(
        instruction="<|user|>\n{input}<|end|>\n<|assistant|>\n",
        system="<|system|>\n{system}<|end|>\n",
        suffix="<|end|>",
        stop=("<|end|>",),
    ),
    "internlm2_chat": _CHATML,
    "qwen_chat": ChatTemplate(
        instruction=_CHATML.instruction,
        system=_CHATML.system,
        suffix=_CHATML.suffix,
        stop=("<|im_end|>", "<|endoftext|>"),
    ),
}


def template(name: str) -> ChatTemplate:
    """The template called ``name`` ("-" and "_" are the same); a :class:`UserError` names the nearest one."""
    name = name.replace("-", "_")
    one_of("chat template", name, sorted(TEMPLATES))
    return TEMPLATES[name]
