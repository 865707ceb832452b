"""SAM2 against the transformers port, with random weights."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from sam2_weights import FEATURES, MASKS, QUICK, choices, close, encode, last, port_and_ours
from transformers_sam2 import CONFIG

from earthmind_jax.config import Precision
from earthmind_jax.models import functional
from earthmind_jax.models.hiera import Hiera, level_positions
from earthmind_jax.models.sam2_prompt import PromptEncoder, box_points


@pytest.fixture(scope="module")
def port():
    """A tiny model of the transformers port with random weights, and those weights as our parameters."""
    return port_and_ours()


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(size=(2, 3, 128, 128)).astype(np.float32)


@pytest.fixture(scope="module")
def port_encoded(port, images):
    return encode(CONFIG, port[1], last(images))


def test_live_trunk_and_neck(port, images, port_encoded):
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        theirs = port[0].vision_encoder.backbone(torch.from_numpy(images)).intermediate_hidden_states
        levels, codes = port[0].vision_encoder.neck(theirs)
    _, stages, ours = port_encoded
    positions = level_positions(ours)
    for i in range(4):
        close(stages[i], theirs[i], FEATURES)
        close(ours[i], last(levels[3 - i]), FEATURES)
        close(positions[i], last(codes[3 - i])[0], FEATURES)


def test_live_other_image_size(port, images):
    """A rectangle off the native grid: positions are resampled and windows padded."""
    torch = pytest.importorskip("torch")
    image = images[:1, :, :96, :64]
    with torch.no_grad():
        theirs = port[0].vision_encoder.backbone(torch.from_numpy(image)).intermediate_hidden_states
    stages = jax.jit(Hiera(CONFIG, Precision()).apply, compiler_options=QUICK)(
        functional.unflatten(port[1], "trunk"), last(image)
    )
    for ours, other in zip(stages, theirs, strict=True):
        close(ours, other, FEATURES)


def test_live_image_features(port, images, port_encoded):
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        theirs = port[0].get_image_embeddings(torch.from_numpy(images))
    features = port_encoded[0]
    close(features.high[0], last(theirs[0]), FEATURES)
    close(features.high[1], last(theirs[1]), FEATURES)
    close(features.embed + port[1]["no_mem_embed"], last(theirs[2]), FEATURES)


def _random_points(count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    points = rng.uniform(0, 127, (2, count, 3, 2)).astype(np.float32)
    return points, rng.integers(-1, 4, (2, count, 3)).astype(np.int32)


def test_live_prompt_encoder(port):
    torch = pytest.importorskip("torch")
    model, params = port
    points, labels = _random_points(3)
    boxes = np.sort(np.random.default_rng(4).uniform(0, 127, (2, 3, 2, 2)).astype(np.float32), axis=2).reshape(2, 3, 4)
    masks = np.random.default_rng(5).normal(size=(2, 1, 32, 32)).astype(np.float32)
    encoder, variables = PromptEncoder(CONFIG, Precision()), functional.unflatten(params, "prompt")

    def encode_prompts(**prompts):
        return encoder.apply(variables, (8, 8), 2, **prompts)

    with torch.no_grad():
        tensors = [torch.from_numpy(x) for x in (points, labels, boxes, masks)]
        theirs, none = model.prompt_encoder(*tensors[:2], None, None)
        corners, dense = model.prompt_encoder(None, None, *tensors[2:])
        code = model.get_image_wide_positional_embeddings()
    ours = encode_prompts(points=points, labels=labels)
    close(ours.sparse, theirs, FEATURES)
    close(np.broadcast_to(ours.dense[:, 0], (2, 8, 8, 32)), last(none), FEATURES)
    close(ours.position, last(code)[0], FEATURES)
    close(encode_prompts(boxes=boxes).sparse, corners[:, :, :2], FEATURES)  # the port adds a padding token to boxes
    corner_points, corner_labels = box_points(boxes)
    close(encode_prompts(points=corner_points, labels=corner_labels).sparse, corners, FEATURES)
    close(encode_prompts(masks=masks).dense[:, 0], last(dense), FEATURES)


def test_live_masks(port, images, port_encoded):
    """Three candidates, and the single mask: always stable, by the published threshold, and never stable."""
    torch = pytest.importorskip("torch")
    model, params = port
    points, labels = _random_points(5)
    thresholds = (0.0, 0.98, 1.1)
    three, one, stable = choices(
        CONFIG, params, port_encoded[0], {"points": points, "labels": labels}, [(0.05, t) for t in thresholds]
    )
    embeddings = model.get_image_embeddings(torch.from_numpy(images))

    def theirs(multimask, threshold):
        model.mask_decoder.dynamic_multimask_stability_thresh = threshold
        prompts = {"input_points": torch.from_numpy(points), "input_labels": torch.from_numpy(labels)}
        with torch.no_grad():
            return model(image_embeddings=embeddings, multimask_output=multimask, **prompts)

    _close_port(three, theirs(True, 0.98))
    for ours, threshold in zip(stable, thresholds, strict=True):
        _close_port(ours, theirs(False, threshold))
    close(stable[0].logits, one.logits, MASKS)


def test_live_mask_prompt(port, images, port_encoded):
    torch = pytest.importorskip("torch")
    model, params = port
    points, labels = _random_points(1)
    masks = np.random.default_rng(5).normal(size=(2, 1, 32, 32)).astype(np.float32)
    with torch.no_grad():
        theirs = model(*(torch.from_numpy(x) for x in (images, points, labels)), input_masks=torch.from_numpy(masks))
    prompts = {"points": points, "labels": labels, "masks": masks}
    _close_port(choices(CONFIG, params, port_encoded[0], prompts)[0], theirs)


def _close_port(ours, theirs) -> None:
    close(ours.logits, theirs.pred_masks, MASKS)
    close(ours.iou, theirs.iou_scores, FEATURES)
    close(ours.object_score, theirs.object_score_logits[..., 0], FEATURES)
