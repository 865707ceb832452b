"""Marks of a request against the transformers port: its processor's coordinates, its masks, one object at a time."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import shapely
from sam2_weights import FEATURES, MASKS, QUICK, close, convert, encode, last, port_and_ours
from transformers_sam2 import CONFIG, published_names

from earthmind_jax.config import Precision
from earthmind_jax.data.pointed import CERTAIN, padded, visual_prompts
from earthmind_jax.geo.marks import Mark
from earthmind_jax.models import functional
from earthmind_jax.models.sam2 import MaskHead

SHAPE = (90, 160)  # rows, columns of the picture that is pointed at


def mark(points=(), labels=(), box=None, area=None) -> Mark:
    return Mark("a", SHAPE, np.reshape(np.asarray(points, float), (-1, 2)), np.array(labels, np.int32), (), box, area)


OBJECTS = {
    "click": mark([(20.25, 30.5)], [1]),
    "clicks": mark([(20, 30), (100.5, 60), (159.9, 89.9)], [1, 0, 1]),
    "box": mark(box=(10, 5, 120.5, 70)),
    "box and clicks": mark([(40, 40), (12, 8)], [1, 0], (10, 5, 120, 70)),
}


@pytest.fixture(scope="module")
def port():
    return port_and_ours()


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).normal(size=(1, 3, 128, 128)).astype(np.float32)


@pytest.fixture(scope="module")
def ground(port, pixels):
    """Best masks of marks, all objects at once."""
    features = encode(CONFIG, port[1], last(pixels))[0]
    head = jax.jit(MaskHead(CONFIG, Precision()).apply, static_argnames="method", compiler_options=QUICK)
    variables = functional.unflatten(port[1])
    return lambda marks, language=None: head(variables, features, language, marks, method="ground")


def scaled(positions, box=False):
    """Coordinates in the picture as the port's processor hands them to its model."""
    torch, sam2 = pytest.importorskip("torch"), pytest.importorskip("transformers.models.sam2.processing_sam2")
    given = torch.tensor(positions, dtype=torch.float32)
    scale = sam2.Sam2Processor._normalize_coordinates  # the processor itself needs torchvision, for its images
    return scale(None, CONFIG.image_size, given, SHAPE, is_bounding_box=box)


def theirs(port, pixels, mark, masks=None):
    """Logits and quality of the port's best candidate for one object."""
    logits, iou = asked(port, pixels, mark, masks)
    return logits.numpy(), float(iou)


def asked(port, pixels, mark, masks=None):
    """The same as tensors."""
    torch = pytest.importorskip("torch")
    given = {}
    if len(mark.points):
        labels = torch.from_numpy(mark.labels)[None, None]
        given |= {"input_points": scaled(mark.points.tolist())[None, None], "input_labels": labels}
    if mark.box:
        given["input_boxes"] = scaled([list(mark.box)], box=True)[None]
    out = port[0](pixel_values=torch.from_numpy(pixels), input_masks=masks, multimask_output=True, **given)
    best = int(out.iou_scores[0, 0].argmax())
    return out.pred_masks[0, 0, best], out.iou_scores[0, 0, best]


def same(found, wanted):
    """Equal to the rounding of sums in another order, which follows the largest value (and the processor)."""
    close(found, wanted, 1e-5 * np.abs(wanted).max())


def test_coordinates_are_those_of_the_published_processor(port):
    for mark in OBJECTS.values():
        ours = visual_prompts([mark], CONFIG).points[0, 0]
        corners, count = 2 if mark.box else 0, len(mark.points)
        if count:
            np.testing.assert_allclose(ours[corners : corners + count], scaled(mark.points.tolist()), rtol=1e-6)
        if mark.box:
            np.testing.assert_allclose(ours[:2].reshape(1, 4), scaled([list(mark.box)], box=True), rtol=1e-6)


def test_objects_of_all_kinds_at_once_are_the_ports_one_by_one(port, pixels, ground):
    """Objects of one, two, three and four points share a call, padded to four; the port gets each without padding."""
    prompts = visual_prompts(list(OBJECTS.values()), CONFIG)
    assert prompts.valid.sum(-1).tolist() == [[1, 3, 2, 4]]
    made = ground(prompts)
    for i, mark in enumerate(OBJECTS.values()):
        logits, iou = theirs(port, pixels, mark)
        close(made.logits[0, i], logits, MASKS)
        close(made.iou[0, i], iou, FEATURES)


def test_gradients_are_the_ports(port, pixels):
    """What a mask loss teaches prompt encoder and decoder through clicks and a box: nothing is held back on the way."""
    torch = pytest.importorskip("torch")
    model, params = port
    marks, weight = [OBJECTS["clicks"], OBJECTS["box"]], np.random.default_rng(3).normal(size=(2, 32, 32))
    weight = weight.astype(np.float32)
    learned = [*model.prompt_encoder.parameters(), *model.mask_decoder.parameters()]
    for value in learned:
        value.requires_grad_(True)
    total = sum(
        (torch.sigmoid(asked(port, pixels, mark)[0]) * torch.from_numpy(w)).sum()
        for mark, w in zip(marks, weight, strict=True)
    )
    total.backward()
    state = {n: np.zeros(p.shape, np.float32) for n, p in model.state_dict().items()}
    state |= {n: p.grad.numpy() for n, p in model.named_parameters() if p.grad is not None}
    for value in learned:
        value.requires_grad_(False)
        value.grad = None
    wanted = convert(published_names(state), CONFIG)
    features = encode(CONFIG, params, last(pixels))[0]
    prompts = visual_prompts(marks, CONFIG)

    def loss(own):
        head = MaskHead(CONFIG, Precision())
        made = head.apply(functional.unflatten(params | own), features, None, prompts, method="ground")
        return (jax.nn.sigmoid(made.logits[0]) * weight).sum()

    own = {k: v for k, v in params.items() if k.startswith(("prompt/points", "decoder/"))}
    found = jax.jit(jax.grad(loss), compiler_options=QUICK)(own)
    moving = [k for k in own if np.abs(wanted[k]).max() > 0]
    assert {"prompt/points", *(k for k in own if "/transformer/" in k and k.endswith("kernel"))} <= set(moving)
    for name in moving:
        # The first belong to the image encoder here; a bias of all keys moves no attention: its gradient is rounding.
        if "conv_s" not in name and not name.endswith("/k/bias"):
            largest = np.abs(wanted[name]).max()
            close(found[name] / largest, wanted[name] / largest, FEATURES)


def test_mask_prompts_beside_others(port, pixels, ground):
    torch = pytest.importorskip("torch")
    area = shapely.Polygon([(20, 10), (140, 20), (60, 80)])
    polygon = mark(area=area)
    prompts = visual_prompts([OBJECTS["click"], polygon], CONFIG)
    assert prompts.masked.tolist() == [[False, True]]
    assert prompts.masks.min() == -CERTAIN
    np.testing.assert_allclose(prompts.masks[0, 1].max(), CERTAIN, rtol=1e-6)
    np.testing.assert_allclose((prompts.masks[0, 1] > 0).mean(), area.area / (SHAPE[0] * SHAPE[1]), atol=0.01)
    made = ground(prompts)
    logits, iou = theirs(port, pixels, OBJECTS["click"])
    close(made.logits[0, 0], logits, MASKS)
    with_box = mark(box=area.bounds)
    logits, iou = theirs(port, pixels, with_box, torch.from_numpy(prompts.masks[:, 1:]))
    close(made.logits[0, 1], logits, MASKS)
    close(made.iou[0, 1], iou, FEATURES)


def test_padding_changes_nothing(ground):
    """More empty places for points, more objects, and whatever stands in them: the same masks to the last bits."""
    prompts = visual_prompts([OBJECTS["clicks"], OBJECTS["box"]], CONFIG)
    language = np.random.default_rng(1).normal(size=(1, 2, CONFIG.width)).astype(np.float32)
    for words in (None, language):
        plain = ground(prompts, words)
        wider = jax.tree.map(lambda x: np.pad(x, [(0, 0), (0, 0), (0, 6), *[(0, 0)] * (x.ndim - 3)]), prompts)
        wider.points[:, :, 4:] = 77
        wider.labels[:, :, 4:] = 1
        more = padded(wider, 5)
        longer = None if words is None else np.pad(words, ((0, 0), (0, 3), (0, 0)), constant_values=3)
        made = ground(more, longer)
        same(made.logits[:, :2], plain.logits)
        same(made.iou[:, :2], plain.iou)


def test_words_without_marks_are_the_published_language_prompt(ground):
    """In a call with marks, an object that has none is drawn as in a call without: two "no point" tokens, its words."""
    language = np.random.default_rng(2).normal(size=(1, 3, CONFIG.width)).astype(np.float32)
    alone = ground(None, language)
    beside = ground(padded(visual_prompts([OBJECTS["clicks"]], CONFIG), 3), language)
    same(beside.logits[:, 1:], alone.logits[:, 1:])
    assert np.abs(beside.logits[:, 0] - alone.logits[:, 0]).max() > 0.1
