from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from earthmind_jax.ops import losses, point_rend, resize

torch = pytest.importorskip("torch")


@pytest.fixture
def recorded(goldens):
    case = goldens / "g_losses"
    arrays = [dict(np.load(case / f"{name}.npz")) for name in ("inputs", "outputs")]
    return *arrays, json.loads((case / "config.json").read_text())


def same(got, want):
    """The recorded case's tolerance, 1e-5 relative (to the largest entry for arrays)."""
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max() if np.ndim(want) else 0)


def test_recorded_points(recorded):
    inputs, outputs, config = recorded
    kept = int(config["importance_sample_ratio"] * config["num_points"])
    coords = point_rend.select_points(inputs["pred_masks"], inputs["rand_oversampled"], inputs["rand_extra"], kept)
    assert coords.shape == outputs["point_coords"].shape
    np.testing.assert_array_equal(coords, outputs["point_coords"])
    same(point_rend.point_sample(inputs["pred_masks"], coords), outputs["sampled_pred"])
    same(point_rend.point_sample(inputs["gt_masks"], coords), outputs["sampled_gt"])


def test_recorded_mask_losses_and_gradients(recorded):
    inputs, outputs, config = recorded
    coords = outputs["point_coords"]
    targets = point_rend.point_sample(inputs["gt_masks"], coords)
    weight = {"mask": config["loss_mask"]["loss_weight"], "dice": config["loss_dice"]["loss_weight"]}
    for name, function in (("mask", losses.mask_bce), ("dice", losses.mask_dice)):

        def loss(masks, function=function, name=name, **options):
            return weight[name] * function(point_rend.point_sample(masks, coords), targets, **options)

        value, gradient = jax.value_and_grad(loss)(inputs["pred_masks"])
        same(value, outputs[f"loss_{name}"])
        same(gradient, outputs[f"grad_loss_{name}"])
        same(loss(inputs["pred_masks"], eps=0.0), outputs[f"loss_{name}_no_avg_factor"])
        whole = [inputs[key].reshape(5, -1) for key in ("pred_masks", "gt_masks")]
        same(weight[name] * function(*whole, eps=0.0), outputs[f"loss_{name}_full_map"])
    # Recorded with mmdet's own defaults: whole maps, eps 1e-3, weight 1.
    same(losses.mask_dice(*whole, smooth=1e-3, eps=0.0, squared=True), outputs["loss_dice_vnet_form"])


def test_recorded_attention(recorded):
    inputs, outputs, config = recorded
    ids = inputs["attn_input_ids"][0]
    attention = inputs["attn"].mean(1)[0]
    attention = attention[ids == config["seg_id"]][:, ids == config["img_context_id"]]
    grid = losses.patch_grid(attention.shape[1])
    assert grid == tuple(outputs["attn_hw"])
    target = losses.attention_target(inputs["attn_gt_masks"], grid)
    same(target, outputs["attn_gt_patch_mask"])
    same(config["attn_loss_weight"] * losses.attention_kl(attention, target), outputs["loss_attn"])


def test_recorded_patch_grid(recorded):
    for tokens, rows, columns in recorded[1]["infer_patch_size"].tolist():
        assert losses.patch_grid(tokens) == (None if rows < 0 else (rows, columns))


def test_patch_grid_limits():
    assert losses.patch_grid(1280) == (32, 40)
    assert losses.patch_grid(2560) == (40, 64)
    assert losses.patch_grid(63 * 63) == (63, 63)
    assert losses.patch_grid(64 * 65) == (52, 80)
    assert losses.patch_grid(7 * 8) is None


@pytest.mark.parametrize("chunk", [1, 7, 20, 1000])
def test_recorded_token_cross_entropy(recorded, chunk):
    """Logits as recorded: hidden states that are the logits themselves, and an identity head."""
    inputs, outputs, _ = recorded
    logits, labels = inputs["llm_logits"][:, :-1], inputs["llm_labels"][:, 1:]
    total, count = losses.token_cross_entropy(
        jnp.asarray(logits), jnp.eye(logits.shape[-1]), jnp.asarray(labels), jnp.asarray(labels != -100), chunk=chunk
    )
    assert count == (labels != -100).sum()
    same(total / count, outputs["llm_loss"])


def test_recorded_sensor_mse(recorded):
    inputs, outputs, _ = recorded
    same(losses.sensor_mse(inputs["rgb_tokens"], inputs["sar_tokens"]), outputs["cos_loss_mse"])


def language(batch=3, length=13, width=8, vocab=29, seed=0):
    rng = np.random.default_rng(seed)
    hidden, head = rng.standard_normal((batch, length, width)), rng.standard_normal((width, vocab))
    targets, mask = rng.integers(0, vocab, (batch, length)), rng.random((batch, length)) < 0.7
    return *(jnp.asarray(x, jnp.float32) for x in (hidden, head)), jnp.asarray(targets), jnp.asarray(mask)


@pytest.mark.parametrize("chunk", [1, 4, 6, 39, 4096])
def test_token_cross_entropy_and_gradients(chunk):
    hidden, head, targets, mask = language()
    leaves = [torch.tensor(np.asarray(x), requires_grad=True) for x in (hidden, head)]
    labels = torch.tensor(np.where(mask, targets, -100)).flatten().long()
    want = torch.nn.functional.cross_entropy((leaves[0] @ leaves[1]).flatten(0, 1), labels, reduction="sum")
    want.backward()

    def loss(hidden, head):
        return losses.token_cross_entropy(hidden, head, jnp.where(mask, targets, -100), mask, chunk=chunk)

    (value, count), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(hidden, head)
    assert count == mask.sum()
    np.testing.assert_allclose(value, want.item(), rtol=1e-5)
    for got, leaf in zip(gradients, leaves, strict=True):
        np.testing.assert_allclose(got, leaf.grad.numpy(), rtol=1e-5, atol=1e-5)


def test_answers_share_their_weight():
    mask = np.array([[0, 1, 1, 0, 1, 1, 1, 1], [1, 0, 1, 0, 0, 0, 0, 0], [0] * 8], bool)
    np.testing.assert_array_equal(losses.answer_weights(mask, 0.0), mask)
    want = [[0, 0.5, 0.5, 0, 0.25, 0.25, 0.25, 0.25], [1, 0, 1, 0, 0, 0, 0, 0], [0] * 8]
    np.testing.assert_allclose(losses.answer_weights(mask, 1.0), want, rtol=1e-6)
    np.testing.assert_allclose(losses.answer_weights(mask, 0.5), np.sqrt(want), rtol=1e-6)


def test_weighted_token_cross_entropy():
    rng = np.random.default_rng(5)
    hidden, head = rng.normal(size=(2, 6, 8)).astype(np.float32), rng.normal(size=(8, 11)).astype(np.float32)
    targets, weights = rng.integers(0, 11, (2, 6)), rng.random((2, 6)).astype(np.float32)
    each = torch.nn.functional.cross_entropy(
        torch.from_numpy(hidden @ head).reshape(-1, 11), torch.from_numpy(targets).reshape(-1), reduction="none"
    )
    total, count = losses.token_cross_entropy(hidden, head, targets, weights, chunk=5)
    assert float(total) == pytest.approx(float((each.numpy() * weights.ravel()).sum()), rel=1e-5)
    assert float(count) == pytest.approx(float(weights.sum()), rel=1e-6)


def test_token_cross_entropy_of_nothing():
    hidden, head, targets, mask = language()
    loss = lambda h: losses.token_cross_entropy(h, head, targets, jnp.zeros_like(mask), chunk=6)  # noqa: E731
    (value, count), gradient = jax.value_and_grad(loss, has_aux=True)(hidden)
    assert (value, count) == (0, 0)
    np.testing.assert_array_equal(gradient, 0)
    with pytest.raises(ValueError, match="chunk"):
        losses.token_cross_entropy(hidden, head, targets, mask, chunk=0)


def test_token_cross_entropy_keeps_float32_gradients_of_a_float32_head():
    hidden, head, targets, mask = language(length=64)
    loss = lambda h, w: losses.token_cross_entropy(h, w, targets, mask, chunk=3)[0]  # noqa: E731
    low = hidden.astype(jnp.bfloat16)
    gradient = jax.grad(loss, argnums=1)(low, head)
    assert gradient.dtype == jnp.float32
    rounded = head.astype(jnp.bfloat16).astype(jnp.float32)
    exact = jax.grad(loss, argnums=1)(low.astype(jnp.float32), rounded)
    assert float(jnp.abs(gradient - exact).max() / jnp.abs(exact).max()) < 0.01


def shapes(jaxpr):
    for eqn in jaxpr.eqns:
        yield from (v.aval for v in eqn.outvars)
        for sub in jaxprs_in_params(eqn.params):
            yield from shapes(sub)


@pytest.mark.parametrize("batch", [1, 4])
def test_logits_never_exist_for_more_than_a_chunk(batch):
    length, vocab, chunk = 256, 512, 16
    hidden, head, targets, mask = language(batch, length, 8, vocab)
    loss = lambda h, w: losses.token_cross_entropy(h, w, targets, mask, chunk=chunk)[0]  # noqa: E731
    step = jax.value_and_grad(loss, argnums=(0, 1))
    largest = max(aval.size for aval in shapes(jax.make_jaxpr(step)(hidden, head).jaxpr) if vocab in aval.shape)
    assert largest == chunk * vocab
    memory = jax.jit(step).lower(hidden, head).compile().memory_analysis()
    assert memory.temp_size_in_bytes < batch * length * vocab * 4 / 2


def test_token_cross_entropy_split_over_devices():
    """Samples over one axis and the vocabulary over another give the same value and gradients."""
    mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    hidden, head, targets, mask = language(8, 12, 8, 32)
    step = jax.jit(
        jax.value_and_grad(lambda h, w, t, m: losses.token_cross_entropy(h, w, t, m, chunk=24)[0], argnums=(0, 1))
    )
    want = step(hidden, head, targets, mask)
    specs = (P("data"), P(None, "tensor"), P("data"), P("data"))
    placed = [
        jax.device_put(x, NamedSharding(mesh, s)) for x, s in zip((hidden, head, targets, mask), specs, strict=True)
    ]
    got = step(*placed)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_invalid_masks_count_for_nothing():
    rng = np.random.default_rng(3)
    logits, targets = rng.standard_normal((4, 50)).astype(np.float32), rng.random((4, 50)).astype(np.float32)
    valid = jnp.array([True, False, True, False])
    for function in (losses.mask_bce, losses.mask_dice):
        got, gradient = jax.value_and_grad(lambda x, f=function: f(x, targets, valid))(logits)
        np.testing.assert_allclose(got, function(logits[::2], targets[::2]), rtol=1e-6)
        np.testing.assert_array_equal(gradient[1::2], 0)
        assert function(logits, targets, jnp.zeros(4, bool)) == 0
    share = rng.random((4, 64)).astype(np.float32) / 64
    target = losses.attention_target(jnp.asarray(rng.random((4, 32, 32)) > 0.9), (8, 8))
    np.testing.assert_allclose(
        losses.attention_kl(share, target, valid), losses.attention_kl(share[::2], target[::2]), rtol=1e-6
    )
    tokens = rng.standard_normal((2, 4, 50)).astype(np.float32)
    np.testing.assert_allclose(
        losses.sensor_mse(*tokens, valid), np.square(tokens[0] - tokens[1])[::2].mean(), rtol=1e-6
    )


def test_extreme_logits_stay_finite():
    logits = jnp.array([[-1e4, 1e4, -1e4, 1e4]])
    targets = jnp.array([[0.0, 1.0, 1.0, 0.0]])
    for function in (losses.mask_bce, losses.mask_dice):
        value, gradient = jax.value_and_grad(lambda x, f=function: f(x, targets))(logits)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()


def test_an_empty_mask_and_no_attention_stay_finite():
    target = losses.attention_target(jnp.zeros((1, 32, 32)), (8, 8))
    value, gradient = jax.value_and_grad(losses.attention_kl)(jnp.zeros((1, 64)), target)
    assert value == 0
    assert np.isfinite(gradient).all()


def test_attention_target_is_the_adaptive_maximum():
    mask = np.random.default_rng(4).random((2, 30, 41)) > 0.95
    pooled = torch.nn.functional.adaptive_max_pool2d(torch.tensor(mask).float(), (8, 12)).flatten(1).numpy()
    want = pooled / (pooled.sum(1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(losses.attention_target(jnp.asarray(mask), (8, 12)), want, rtol=1e-6)
    assert resize.adaptive_max(jnp.asarray(mask)[..., None], (8, 12)).dtype == jnp.bool_


def test_contrast_is_the_cross_entropy_of_the_choice():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 3, 50)).astype(np.float32)
    label = rng.integers(0, 4, (2, 50))  # 3 lies in no mask
    masks = np.stack([label == m for m in range(3)], 1).astype(np.float32)
    target = torch.from_numpy(np.where(label == 3, -100, label))
    want = torch.nn.functional.cross_entropy(torch.from_numpy(logits), target)
    assert float(losses.mask_contrast(logits, masks)) == pytest.approx(float(want), rel=1e-6)
    # A mask that is padding is no choice, and pixels that lie in it alone do not count.
    keep = np.array([[True, True, False]] * 2)
    two = torch.from_numpy(np.where(label >= 2, -100, label))
    want = torch.nn.functional.cross_entropy(torch.from_numpy(logits[:, :2]), two)
    assert float(losses.mask_contrast(logits, masks, keep)) == pytest.approx(float(want), rel=1e-6)
    assert float(losses.mask_contrast(logits, masks, np.zeros_like(keep))) == 0.0
    assert np.isfinite(jax.grad(lambda x: losses.mask_contrast(x, masks, keep))(logits)).all()


def test_contrast_shares_a_pixel_of_several_masks():
    logits, masks = jnp.zeros((1, 2, 4)), jnp.ones((1, 2, 4))
    assert float(losses.mask_contrast(logits, masks)) == pytest.approx(np.log(2), rel=1e-6)
    np.testing.assert_allclose(jax.grad(lambda x: losses.mask_contrast(x, masks))(logits), 0, atol=1e-7)


def test_region_word_knows_a_phrase_in_every_sample():
    """Two samples that both name "water" (the same words), one that names "forest": tokens are held to all of them."""
    rng = np.random.default_rng(1)
    water, forest = 0.02 * rng.normal(size=(2, 8)).astype(np.float32)
    words = jnp.asarray(np.stack([[water, forest], [3 * water, np.zeros(8, np.float32)]]))
    named = np.array([[True, True], [True, False]])
    cover = np.zeros((2, 2, 3), np.float32)
    cover[0, 0], cover[0, 1], cover[1, 0] = [1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]
    tokens = rng.normal(size=(2, 3, 8)).astype(np.float32)
    valid = np.array([[True, True, True], [False, True, True]])

    got = losses.region_word(tokens, valid, words, named, cover)

    def unit(x):
        return x / np.linalg.norm(x)

    sums = {True: [0.0, 0.0], False: [0.0, 0.0]}
    held = {0: {"w": cover[0, 0], "f": cover[0, 1]}, 1: {"w": cover[1, 0], "f": np.zeros(3)}}
    for b in range(2):
        for n in np.flatnonzero(valid[b]):
            for name, vector in (("w", water), ("f", forest), ("w", water)):
                logit = 10 * unit(tokens[b, n]) @ unit(vector) - 3
                target = held[b][name][n]
                each = np.logaddexp(0, logit) - logit * target
                for there, share in ((True, target), (False, 1 - target)):
                    sums[there][0] += each * share
                    sums[there][1] += share
    want = 0.5 * sum(total / max(count, 1) for total, count in sums.values())
    assert float(got) == pytest.approx(want, rel=1e-4)


def test_region_word_without_a_phrase_is_zero():
    args = (jnp.ones((1, 4, 8)), jnp.ones((1, 4), bool), jnp.ones((1, 2, 8)), jnp.zeros((1, 2), bool))
    value, gradient = jax.value_and_grad(lambda t: losses.region_word(t, *args[1:], jnp.ones((1, 2, 4))))(args[0])
    assert float(value) == 0.0
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 3), (5, 1)])
def test_each_tile_is_covered_by_its_part_of_the_mask(rows, columns):
    """The cells of all tiles, put together as the image is, are the mask's maxima; so are those of the thumbnail."""
    side, masks = 3, np.random.default_rng(0).random((2, 4, 32, 32)) > 0.97
    places = [(row, column, rows, columns) for row in range(rows) for column in range(columns)]
    places = jnp.array([[*places, (0, 0, 1, 1), (0, 0, 0, 0)]] * 2)
    cover = np.asarray(losses.tile_cover(jnp.asarray(masks), places, side))
    tiles = cover[:, :, :-2].reshape(2, 4, rows, columns, side, side).swapaxes(3, 4)
    wanted = resize.adaptive_max(jnp.asarray(masks, jnp.float32)[..., None], (rows * side, columns * side))[..., 0] > 0
    np.testing.assert_array_equal(tiles.reshape(2, 4, rows * side, columns * side), wanted)
    target = losses.attention_target(jnp.asarray(masks), (side, side))
    np.testing.assert_array_equal(cover[:, :, -2], target > 0)
    assert not cover[:, :, -1].any()
