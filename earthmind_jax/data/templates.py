"""Chat templates of the published models: the text around a user's turn, and what ends an answer."""

from __future__ import annotations

from dataclasses import dataclass

from earthmind_jax.config import one_of

VARIANTS = ("hf", "train")


@dataclass(frozen=True)
class Template:
    """A chat template: the text around one user turn, what ends an answer, and the strings that stop generation.

    ``train_instruction`` is what the published training code really used where that differs from inference: its data
    sets overwrite the template and lose a newline. Ids follow ``hf``, the inference form, unless asked otherwise.
    ``system_message`` opens every conversation; EarthMind and Sa2VA have none.
    """

    name: str
    instruction: str
    suffix: str
    separator: str
    stop_words: tuple[str, ...]
    system: str
    train_instruction: str = ""
    system_message: str = ""

    @property
    def opening(self) -> str:
        """What stands before the first turn."""
        return self.system.replace("{system}", self.system_message) if self.system_message else ""

    def around(self, variant: str = "hf") -> tuple[str, str]:
        """The text before and after the user's input."""
        one_of("template variant", variant, VARIANTS)
        text = self.train_instruction if variant == "train" and self.train_instruction else self.instruction
        before, _, after = text.partition("{input}")
        return before, after


_CHATML = "<|im_start|>user\n{input}<|im_end|>\n<|im_start|>assistant\n"
_CHATML_SYSTEM = "<|im_start|>system\n{system}<|im_end|>\n"

# The base models' own system messages (OpenGVLab/InternVL, internvl_chat/internvl/conversation.py).
_INTERNVL2 = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
)
_INTERNVL2_5 = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)
_CHATML_CLOSE = "<|im_start|>user\n{input}<|im_end|><|im_start|>assistant\n"

TEMPLATES = {
    template.name: template
    for template in (
        Template(
            "phi3_chat",
            "<|user|>\n{input}<|end|>\n<|assistant|>\n",
            "<|end|>",
            "\n",
            ("<|end|>",),
            "<|system|>\n{system}<|end|>\n",
            "<|user|>\n{input}<|end|><|assistant|>\n",
        ),
        Template("qwen_chat", _CHATML, "<|im_end|>", "\n", ("<|im_end|>", "<|endoftext|>"), _CHATML_SYSTEM),
        Template("internlm2_chat", _CHATML, "<|im_end|>", "\n", ("<|im_end|>",), _CHATML_SYSTEM),
        Template("vicuna", "USER: {input} ASSISTANT:", "", "\n", (), "{system}"),
        *(
            Template(
                name,
                _CHATML_CLOSE,
                "<|im_end|>",
                "",
                ("<|im_end|>",),
                "<|im_start|>system\n{system}<|im_end|>",
                system_message=_INTERNVL2,
            )
            for name in ("internvl2_hermes", "internvl2_internlm2")
        ),
        Template(
            "internvl2_phi3",
            "<|user|>\n{input}<|end|><|assistant|>\n",
            "<|end|>",
            "",
            ("<|end|>",),
            "<|system|>\n{system}<|end|>",
            system_message=_INTERNVL2,
        ),
        Template(
            "internvl2_5", _CHATML, "<|im_end|>\n", "", ("<|im_end|>",), _CHATML_SYSTEM, system_message=_INTERNVL2_5
        ),
    )
}

INTERNVL = {
    "Hermes-2": "internvl2_hermes", "internlm2-chat": "internvl2_internlm2", "phi3-chat": "internvl2_phi3",
    "internvl2_5": "internvl2_5",
}  # fmt: skip
"""``template`` of a base InternVL model's ``config.json`` -> ours. EarthMind's of like names have no system message."""


def get_template(name: str) -> Template:
    """The template of a config's ``template`` (hyphens read as underscores); UserError where there is none."""
    name = name.replace("-", "_")
    one_of("chat template", name, tuple(TEMPLATES))
    return TEMPLATES[name]
