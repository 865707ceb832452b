"""Prompt strings byte for byte, recorded ids, and what each position of a conversation means."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from earthmind_jax.data import prompts, templates, tiles
from earthmind_jax.data.tokenizer import Tokenizer, train_bpe
from earthmind_jax.errors import UserError

GOLDENS = Path(os.environ.get("EARTHMIND_GOLDENS", Path(__file__).parents[3] / "shared" / "goldens"))
CASES = sorted(GOLDENS.glob("e_e2e_*")) if GOLDENS.is_dir() else []
CONTEXT = "<IMG_CONTEXT>"


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    texts = [q.format(c="wide river") for q in prompts.SEGMENTATION_QUESTIONS] + list(prompts.SEGMENTATION_ANSWERS)
    return train_bpe(texts * 2, 400)


def recorded_rows(case, config, run, inputs):
    """Visual rows of each image block, and of each region, as the published code lays them out."""
    tokens, size = config["patch_token"], config["image_size"]
    frame = inputs["video"] if run == "video" else inputs["image"]
    if run == "text_only":
        return (), ()
    if run == "video":
        return [np.arange(i * tokens, (i + 1) * tokens) for i in range(min(len(frame), 5))], ()
    limits = config["min_dynamic_patch_used"], config["max_dynamic_patch_used"]
    count = len(tiles.dynamic_tiles(frame, size, *limits, config["use_thumbnail"]))
    per_tile = 2 * tokens if run == "multi" else tokens
    regions = []
    if run == "region":
        grid = tiles.closest_grid((frame.shape[1], frame.shape[0]), *limits, size)
        for mask in inputs["region_mask_prompts"]:
            cells = tiles.region_cells(mask, round(tokens**0.5), grid, at_least_one=False)
            regions.append([tile * tokens + token for tile, token in cells])
    return [np.arange(count * per_tile)], regions


@pytest.mark.skipif(not CASES, reason="no recorded outputs")
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_recorded_ids(case):
    config = json.loads((case / "config.json").read_text())
    inputs, outputs = np.load(case / "inputs.npz"), np.load(case / "outputs.npz")
    tokenizer = Tokenizer.load(case)
    for run, settings in config["runs"].items():
        visual, regions = recorded_rows(case, config, run, inputs)
        prompt = prompts.build(
            [(settings["text"], None)], tokenizer, config["template"], visual=visual, regions=regions
        )
        np.testing.assert_array_equal(prompt.tokens, outputs[f"{run}.input_ids"][0], err_msg=run)
        context = prompt.tokens == config["token_ids"]["img_context"]
        np.testing.assert_array_equal(context, prompt.visual_index >= 0)
        own = tokenizer.decode(prompt.tokens[prompt.question]).strip()
        assert own == settings["text"].replace("<image>", "").strip(), run
        assert not prompt.loss_mask.any()
        assert prompt.seg == ()


def test_recorded_regions_repeat_rows_of_the_thumbnail():
    for case in (c for c in CASES if "region" in json.loads((c / "config.json").read_text())["runs"]):
        config = json.loads((case / "config.json").read_text())
        inputs, outputs = np.load(case / "inputs.npz"), np.load(case / "outputs.npz")
        visual, regions = recorded_rows(case, config, "region", inputs)
        text = config["runs"]["region"]["text"]
        prompt = prompts.build([(text, None)], Tokenizer.load(case), visual=visual, regions=regions)
        features = outputs["region.vit_embeds.0"]
        rows = features.reshape(-1, features.shape[-1])
        place = prompt.visual_index >= 0
        np.testing.assert_array_equal(outputs["region.inputs_embeds"][0][place], rows[prompt.visual_index[place]])


def text_of(prompt, tokenizer):
    return tokenizer.decode(prompt.tokens)


def test_published_strings(bpe):
    def made(question, counts=(), regions=(), **options):
        rows = [list(range(c)) for c in counts]
        marked = [[0] * c for c in regions]
        return text_of(prompts.build([(question, None)], bpe, visual=rows, regions=marked, **options), bpe)

    block = f"<img>{CONTEXT * 5}</img>"
    head, tail = "<|user|>\n", "<|end|>\n<|assistant|>\n"
    ask = "<image>\n Please segment the large ship in this image."
    assert made(ask, [5]) == f"{head}{block}\n Please segment the large ship in this image.{tail}"
    assert made("<image>What?", [5], variant="train") == f"{head}{block}What?<|end|><|assistant|>\n"
    assert made("What?", [5, 5]) == f"{head}{block}\n{block}\nWhat?{tail}"
    assert made("<image>\nWhat?") == f"{head}\nWhat?{tail}"
    region = f"{head}{block}\nThere are 1 part regions in the picture: region1<vp>{CONTEXT * 3}</vp>.\n"
    assert made("<image>\nDescribe region1.", [5], [3]) == f"{region}\nDescribe region1.{tail}"
    assert made("<image>\nDescribe region1.", [5], [3], variant="train") == (
        f"{region}Describe region1.<|end|><|assistant|>\n"
    )
    assert prompts.region_string([1, 2]) == (
        f"\nThere are 2 part regions in the picture: region1<vp>{CONTEXT}</vp>, region2<vp>{CONTEXT * 2}</vp>.\n"
    )
    assert prompts.image_block([2, 1]) == f"<img>{CONTEXT * 2}</img>\n<img>{CONTEXT}</img>"


def test_templates():
    chatml = "<|im_start|>user\n{input}<|im_end|>\n<|im_start|>assistant\n"
    for name, stops in (("qwen_chat", ("<|im_end|>", "<|endoftext|>")), ("internlm2-chat", ("<|im_end|>",))):
        template = templates.get_template(name)
        assert (template.instruction, template.suffix, template.stop_words) == (chatml, "<|im_end|>", stops)
        assert template.around("train") == template.around("hf")
        assert (template.separator, template.system) == ("\n", "<|im_start|>system\n{system}<|im_end|>\n")
    phi3 = templates.get_template("phi3-chat")
    assert phi3.around() == ("<|user|>\n", "<|end|>\n<|assistant|>\n")
    assert phi3.around("train") == ("<|user|>\n", "<|end|><|assistant|>\n")
    assert (phi3.suffix, phi3.separator, phi3.stop_words) == ("<|end|>", "\n", ("<|end|>",))
    assert phi3.system == "<|system|>\n{system}<|end|>\n"
    vicuna = templates.get_template("vicuna")
    assert (vicuna.around(), vicuna.suffix, vicuna.separator) == (("USER: ", " ASSISTANT:"), "", "\n")
    with pytest.raises(UserError, match="Did you mean 'qwen_chat'"):
        templates.get_template("qwen_chatt")
    assert len(prompts.SEGMENTATION_QUESTIONS) == 16
    assert len(prompts.SEGMENTATION_ANSWERS) == 5


def test_templates_of_base_internvl(bpe):
    """Byte for byte what ``Conversation.get_prompt`` of InternVL2 and InternVL2.5 makes of two turns."""
    old = "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
    new = "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
    chatml = ("<|im_start|>system\n", "<|im_start|>user\n", "<|im_start|>assistant\n")
    phi3 = ("<|system|>\n", "<|user|>\n", "<|assistant|>\n")
    for published, (system, user, assistant), message, end in (
        ("Hermes-2", chatml, old, "<|im_end|>"),
        ("internlm2-chat", chatml, old, "<|im_end|>"),
        ("phi3-chat", phi3, old, "<|end|>"),
        ("internvl2_5", chatml, new, "<|im_end|>\n"),
    ):
        turns = [("What is this?", "A lake."), ("Is it deep?", None)]
        prompt = prompts.build(turns, bpe, templates.INTERNVL[published], visual=[range(4)])
        assert text_of(prompt, bpe) == (
            f"{system}{message}{end}{user}<img>{CONTEXT * 4}</img>\nWhat is this?{end}{assistant}A lake.{end}"
            f"{user}Is it deep?{end}{assistant}"
        )
        assert bpe.decode(prompt.tokens[prompt.question]) == "What is this?Is it deep?"
        assert templates.get_template(templates.INTERNVL[published]).stop_words == (end.strip(),)


def test_conversation_masks(bpe):
    turns = [("Where is the river?", "It is [SEG]."), ("Is it wide?", "Yes"), ("And the lake?", "[SEG] or [SEG].")]
    prompt = prompts.build(turns, bpe, "qwen_chat", visual=[range(10, 14)])
    assert text_of(prompt, bpe) == (
        f"<|im_start|>user\n<img>{CONTEXT * 4}</img>\nWhere is the river?<|im_end|>\n<|im_start|>assistant\n"
        "It is [SEG].<|im_end|><|im_start|>user\nIs it wide?<|im_end|>\n<|im_start|>assistant\nYes<|im_end|>"
        "<|im_start|>user\nAnd the lake?<|im_end|>\n<|im_start|>assistant\n[SEG] or [SEG].<|im_end|>"
    )
    assert bpe.decode(prompt.tokens[prompt.loss_mask]) == "".join(f"{answer}<|im_end|>" for _, answer in turns)
    assert bpe.decode(prompt.tokens[prompt.question]) == "".join(question for question, _ in turns)
    assert prompt.visual_index[prompt.visual_index >= 0].tolist() == [10, 11, 12, 13]
    assert (prompt.tokens[list(prompt.seg)] == bpe.id("[SEG]")).all()
    assert len(prompt.seg) == 3
    # Answers are encoded on their own: no merge crosses from the template into an answer.
    first = np.flatnonzero(prompt.loss_mask)[0]
    answer = bpe.encode("It is [SEG].<|im_end|>")
    assert prompt.tokens[first : first + len(answer)].tolist() == answer


def test_separator_is_not_supervised(bpe):
    turns = [("Describe region1.", "A lake"), ("Describe region2.", "A road")]
    with_regions = prompts.build(turns, bpe, "qwen_chat", visual=[range(4)], regions=[[3, 1], []])
    assert text_of(with_regions, bpe).endswith("A road<|im_end|>\n")
    assert f"region1<vp>{CONTEXT * 2}</vp>, region2<vp></vp>." in text_of(with_regions, bpe)
    assert not with_regions.loss_mask[-1]
    assert bpe.decode(with_regions.tokens[with_regions.loss_mask]) == ("A lake<|im_end|>A road<|im_end|>")
    assert with_regions.visual_index[with_regions.visual_index >= 0].tolist() == [0, 1, 2, 3, 3, 1]
    without = prompts.build(turns, bpe, "qwen_chat", visual=[range(4)])
    assert text_of(without, bpe).endswith("A road<|im_end|>")


def test_expanding_runs_equals_encoding_them(bpe):
    for template in templates.TEMPLATES:
        prompt = prompts.build([("Where?", None)], bpe, template, visual=[range(300)], regions=[range(7)])
        assert prompt.tokens.tolist() == bpe.encode(text_of(prompt, bpe))


@pytest.mark.parametrize(
    ("turns", "visual", "message"),
    [
        ([], (), "at least one turn"),
        ([("a", None), ("b", "c")], (), "Only the last turn"),
        ([("a", "b"), ("<image>c", "d")], [[0]], "Only the first question"),
        ([("<image><image>", "b")], [[0]], "Only the first question"),
        ([("a </img> b", None)], (), "reserved token </img>"),
    ],
)
def test_bad_conversations(bpe, turns, visual, message):
    with pytest.raises(UserError, match=message):
        prompts.build(turns, bpe, visual=visual)


def test_a_region_needs_an_image(bpe):
    with pytest.raises(UserError, match="needs an image"):
        prompts.build([("a", None)], bpe, regions=[[0]])
