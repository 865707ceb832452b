"""SAM2 for images: objects and images are independent, shortcuts change nothing, bad requests are explained."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from earthmind_jax.config import GroundingConfig, Precision
from earthmind_jax.errors import UserError
from earthmind_jax.models import functional
from earthmind_jax.models.sam2 import ImageEncoder, MaskHead, best_mask, three_masks
from earthmind_jax.models.sam2_decoder import MaskDecoder
from earthmind_jax.models.sam2_presets import PRESETS, grounding_from_hydra, sam2_preset
from earthmind_jax.models.sam2_prompt import PromptEncoder, box_points

TINY = GroundingConfig(
    image_size=64, embed_dim=8, heads=1, stages=(1, 1, 2, 1), global_blocks=(3,), windows=(8, 4, 6, 3), pos_grid=(3, 4),
    width=32, decoder_heads=4, decoder_mlp=48, iou_hidden=24,
)  # fmt: skip
ENCODER, HEAD = ImageEncoder(TINY), MaskHead(TINY)
QUICK = {"xla_backend_optimization_level": 0}  # sizes are tiny and compilation is most of the time


def _quick(function):
    return jax.jit(function, compiler_options=QUICK)


def _normal(seed: int, *shape: int):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.fixture(scope="module")
def params():
    image, language = jnp.zeros((1, 64, 64, 3)), jnp.zeros((1, 1, 32))

    @_quick
    def init(key):
        features, variables = ENCODER.init_with_output(key, image)
        return functional.flatten(meta.unbox(variables)) | functional.init_module(HEAD, key, features, language)

    return init(jax.random.key(0))


@pytest.fixture(scope="module")
def variables(params):
    return functional.unflatten(params)


@pytest.fixture(scope="module")
def features(variables):
    return _quick(ENCODER.apply)(variables, _normal(0, 2, 64, 96, 3))


@pytest.fixture(scope="module")
def ground():
    return _quick(HEAD.apply)


def _same(ours, theirs, atol: float = 2e-5) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), ours, theirs)


def test_shapes_and_dtypes(variables, features, ground):
    masks = ground(variables, features, _normal(1, 2, 5, 32))
    assert features.embed.shape == (2, 4, 6, 32)
    assert [x.shape for x in features.high] == [(2, 16, 24, 4), (2, 8, 12, 8)]
    assert masks.logits.shape == (2, 5, 16, 24)
    assert masks.tokens.shape == (2, 5, 32)
    assert masks.iou.shape == masks.object_score.shape == (2, 5)
    assert masks.logits.dtype == jnp.float32


def test_all_objects_at_once_is_one_at_a_time(variables, features, ground):
    language = _normal(2, 2, 5, 32)
    together = ground(variables, features, language)
    for m in range(5):
        alone = ground(variables, features, language[:, m : m + 1])
        _same(jax.tree.map(lambda x, m=m: x[:, m : m + 1], together), alone)


def test_images_do_not_see_each_other(variables, features, ground):
    language = _normal(3, 2, 3, 32)
    together = ground(variables, features, language)
    for b in range(2):
        alone = ground(variables, jax.tree.map(lambda x, b=b: x[b : b + 1], features), language[b : b + 1])
        _same(jax.tree.map(lambda x, b=b: x[b : b + 1], together), alone)


def test_one_image_for_all_objects_is_a_copy_for_each(params, features):
    """What the decoder shares between objects is what it would compute for each of them."""
    decoder, variables = MaskDecoder(TINY, Precision()), functional.unflatten(params, "decoder")
    encoder = PromptEncoder(TINY, Precision())
    prompts = encoder.apply(functional.unflatten(params, "prompt"), (4, 6), 2, language=_normal(4, 2, 3, 32))
    copies = prompts._replace(dense=jnp.broadcast_to(prompts.dense, (2, 3, 4, 6, 32)))
    run = _quick(decoder.apply)
    _same(run(variables, features.embed, features.high, prompts), run(variables, features.embed, features.high, copies))


def test_shared_work_does_not_grow_with_the_objects(params, features):
    """The first layer's projections of the image are computed once: no array of them has an object axis."""
    decoder, variables = MaskDecoder(TINY, Precision()), functional.unflatten(params, "decoder")
    encoder = PromptEncoder(TINY, Precision())
    prompts = encoder.apply(functional.unflatten(params, "prompt"), (4, 6), 2, language=_normal(4, 2, 3, 32))

    def products(prompts):
        traced = jax.make_jaxpr(decoder.apply)(variables, features.embed, features.high, prompts)
        shapes = [eqn.outvars[0].aval.shape for eqn in _equations(traced.jaxpr) if eqn.primitive.name == "dot_general"]
        return sum(shape == (2, 3, 24, 4, 4) for shape in shapes)  # projections of the image for each object

    copies = prompts._replace(dense=jnp.broadcast_to(prompts.dense, (2, 3, 4, 6, 32)))
    assert products(prompts) == products(copies) - 3


def _equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _equations(inner)


def test_best_mask_is_the_candidate_of_highest_predicted_iou(variables, features):
    decoded = _quick(partial(HEAD.apply, method="decode"))(variables, features, language=_normal(5, 2, 6, 32))
    decoded = decoded.replace(iou=jax.random.uniform(jax.random.key(2), decoded.iou.shape))
    three, best = three_masks(decoded), best_mask(decoded)
    choice = np.argmax(three.iou, -1)
    assert len(np.unique(choice)) > 1
    for b, m in np.ndindex(choice.shape):
        np.testing.assert_allclose(best.logits[b, m], three.logits[b, m, choice[b, m]], atol=1e-5)
        np.testing.assert_allclose(best.tokens[b, m], three.tokens[b, m, choice[b, m]])
        assert best.iou[b, m] == three.iou[b, m, choice[b, m]]


def test_gradients_are_finite_and_reach_the_chosen_mask_only(variables, features):
    def loss(variables, features, language):
        return (HEAD.apply(variables, features, language).logits ** 2).mean()

    grads, image, prompt = _quick(jax.grad(loss, argnums=(0, 1, 2)))(variables, features, _normal(6, 2, 3, 32))
    flat = functional.flatten(grads)
    assert all(bool(jnp.isfinite(x).all()) for x in (*flat.values(), *jax.tree.leaves(image), prompt))
    assert all(float(jnp.abs(x).max()) > 0 for x in (*jax.tree.leaves(image), prompt))
    assert float(jnp.abs(flat["decoder/upscale1/kernel"]).max()) > 0
    for still in ("decoder/iou_head/fc1/kernel", "decoder/object_head/fc1/kernel", "prompt/gaussian"):
        assert float(jnp.abs(flat[still]).max()) == 0
    assert float(jnp.abs(flat["decoder/hyper/fc1/kernel"][0]).max()) == 0  # the single mask is never chosen


def test_bfloat16_stays_close(variables, features, ground):
    language = _normal(9, 2, 3, 32)
    half = Precision(compute="bfloat16")
    image = _normal(0, 2, 64, 96, 3)
    ours = _quick(ImageEncoder(TINY, half).apply)(variables, image)
    assert ours.embed.dtype == ours.high[0].dtype == jnp.bfloat16
    three = _quick(partial(HEAD.apply, method="predict"))(variables, features, language=language)
    rough = _quick(partial(MaskHead(TINY, half).apply, method="predict"))(variables, ours, language=language)
    assert rough.logits.dtype == rough.iou.dtype == jnp.float32
    a, b = three.logits.ravel(), rough.logits.ravel()
    assert float(a @ b / jnp.linalg.norm(a) / jnp.linalg.norm(b)) > 0.99


def test_every_parameter_has_axes(params, features):
    axes = functional.module_axes(HEAD, features, jnp.zeros((2, 1, 32))) | functional.module_axes(
        ENCODER, jnp.zeros((1, 64, 64, 3))
    )
    assert axes.keys() == params.keys()
    assert all(len(axes[path]) == x.ndim for path, x in params.items())
    assert axes["decoder/transformer/layer_0/token_to_image/q/kernel"] == ("embed", "heads", "head")


def test_padding_point_rule(params):
    encoder, variables = PromptEncoder(TINY, Precision()), functional.unflatten(params, "prompt")
    nothing = params["prompt/not_a_point"]

    def tokens(**prompts):
        return encoder.apply(variables, (4, 4), 1, **prompts).sparse

    points, labels, boxes = jnp.full((1, 2, 3, 2), 7.0), jnp.array([[[1, -1, 0], [0, 1, 2]]]), jnp.ones((1, 2, 4))
    assert tokens(points=points, labels=labels).shape == (1, 2, 4, 32)  # one more, which is no point
    np.testing.assert_allclose(tokens(points=points, labels=labels)[:, :, 3], jnp.broadcast_to(nothing, (1, 2, 32)))
    np.testing.assert_allclose(tokens(points=points, labels=labels)[0, 0, 1], nothing)
    assert tokens(boxes=boxes).shape == (1, 2, 2, 32)
    assert tokens(points=points, labels=labels, boxes=boxes).shape == (1, 2, 5, 32)
    assert tokens().shape == (1, 1, 2, 32)
    language = _normal(10, 1, 2, 32)
    np.testing.assert_allclose(tokens(language=language)[0, 1], jnp.stack([nothing, nothing, language[0, 1]]))
    corners, kinds = box_points(boxes)
    np.testing.assert_allclose(tokens(points=corners, labels=kinds)[:, :, :2], tokens(boxes=boxes))


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({"points": jnp.zeros((2, 1, 1, 2))}, "labels"),
        ({"boxes": jnp.zeros((1, 1, 4))}, "2 images"),
        ({"boxes": jnp.zeros((2, 1, 4)), "language": jnp.zeros((2, 3, 32))}, "boxes"),
        ({"masks": jnp.zeros((2, 1, 8, 8))}, "quarter"),
    ],
)
def test_bad_prompts_are_explained(variables, features, prompts, message):
    with pytest.raises(UserError, match=message):
        HEAD.apply(variables, features, **prompts, method="predict")


def test_bad_images_are_explained(variables):
    with pytest.raises(UserError, match="multiples of 32"):
        ENCODER.apply(variables, jnp.zeros((1, 64, 50, 3)))


# ----------------------------------------------------------------------------------------------------- configuration


def hydra(config: GroundingConfig) -> dict:
    """The published tree of a size, as its yaml file spells it."""
    v21, memory = config.version == "2.1", config.memory_dim
    sine = {"normalize": True, "scale": None, "temperature": 10000}
    attention = {"rope_theta": 10000.0, "feat_sizes": [64, 64], "embedding_dim": config.width, "num_heads": 1,
                 "downsample_rate": 1, "dropout": 0.1}  # fmt: skip
    return {
        "model": {
            "_target_": "sam2.modeling.sam2_base.SAM2Base",
            "image_encoder": {
                "scalp": 1,
                "trunk": {
                    "embed_dim": config.embed_dim, "num_heads": config.heads, "stages": list(config.stages),
                    "global_att_blocks": list(config.global_blocks), "window_spec": list(config.windows),
                    "window_pos_embed_bkg_spatial_size": list(config.pos_grid),
                },
                "neck": {
                    "position_encoding": {"num_pos_feats": config.width, **sine}, "d_model": config.width,
                    "backbone_channel_list": list(config.stage_widths[::-1]), "fpn_interp_model": "nearest",
                    "fpn_top_down_levels": list(config.top_down_levels),
                },
            },
            "memory_attention": {
                "d_model": config.width, "pos_enc_at_input": True, "num_layers": config.memory_layers,
                "layer": {
                    "activation": "relu", "dim_feedforward": config.memory_mlp, "dropout": 0.1, "d_model": config.width,
                    "pos_enc_at_attn": False, "pos_enc_at_cross_attn_keys": True, "self_attention": attention,
                    "pos_enc_at_cross_attn_queries": False,
                    "cross_attention": attention | {"rope_k_repeat": True, "kv_in_dim": memory},
                },
            },
            "memory_encoder": {
                "out_dim": memory, "position_encoding": {"num_pos_feats": memory, **sine},
                "mask_downsampler": {"kernel_size": 3, "stride": 2, "padding": 1},
                "fuser": {
                    "num_layers": 2,
                    "layer": {"dim": config.width, "kernel_size": 7, "padding": 3, "layer_scale_init_value": 1e-6,
                              "use_dwconv": True},
                },
            },
            "num_maskmem": config.memory_frames, "image_size": config.image_size, "sigmoid_scale_for_mem_enc": 20.0,
            "sigmoid_bias_for_mem_enc": -10.0, "use_mask_input_as_output_without_sam": True,
            "directly_add_no_mem_embed": True, "no_obj_embed_spatial": v21, "use_high_res_features_in_sam": True,
            "multimask_output_in_sam": True, "iou_prediction_use_sigmoid": config.iou_sigmoid,
            "use_obj_ptrs_in_encoder": True, "add_tpos_enc_to_obj_ptrs": v21, "proj_tpos_enc_in_obj_ptrs": v21,
            "use_signed_tpos_enc_to_obj_ptrs": v21, "only_obj_ptrs_in_the_past_for_eval": True,
            "pred_obj_scores": True, "pred_obj_scores_mlp": True, "fixed_no_obj_ptr": True,
            "multimask_output_for_tracking": True, "use_multimask_token_for_obj_ptr": True, "multimask_min_pt_num": 0,
            "multimask_max_pt_num": 1, "use_mlp_for_obj_ptr_proj": True, "compile_image_encoder": False,
        }
    }  # fmt: skip


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_published_trees_give_the_presets(name):
    assert grounding_from_hydra(hydra(sam2_preset(name))) == sam2_preset(name)
    assert sam2_preset(name).version == ("2.1" if name.startswith("sam2.1") else "2.0")


def test_trees_may_leave_out_and_add():
    tree = hydra(sam2_preset("sam2_hiera_base_plus"))
    for key in ("stages", "global_att_blocks", "window_spec", "window_pos_embed_bkg_spatial_size"):
        del tree["model"]["image_encoder"]["trunk"][key]  # the published file relies on these defaults
    assert grounding_from_hydra(tree) == sam2_preset("sam2_hiera_base_plus")
    tree["model"]["sam_mask_decoder_extra_args"] = {"dynamic_multimask_via_stability": True}
    expected = dataclasses.replace(sam2_preset("sam2_hiera_base_plus"), stability=True)
    assert grounding_from_hydra(tree["model"]) == expected


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("image_encoder.neck.fuse_type", "avg", "image_encoder.neck.fuse_type"),
        ("image_encoder.trunk.q_stride", [4, 4], r"q_stride.*\(2, 2\)"),
        ("image_encoder.neck.backbone_channel_list", [1, 2, 3, 4], "backbone_channel_list"),
        ("use_high_res_features_in_sam", False, "use_high_res_features_in_sam"),
        ("no_obj_embed_spatial", True, "SAM2.1"),
        ("image_encoder.trunk.embed_dimm", 96, "Did you mean 'image_encoder.trunk.embed_dim'"),
    ],
)
def test_unsupported_options_are_named(path, value, message):
    tree = hydra(sam2_preset("sam2_hiera_tiny"))
    node, *rest = tree["model"], *path.split(".")
    for key in rest[:-1]:
        node = node[key]
    node[rest[-1]] = value
    with pytest.raises(UserError, match=message):
        grounding_from_hydra(tree)


def test_unknown_size_names_the_nearest():
    with pytest.raises(UserError, match=r"sam2\.1_hiera_large"):
        sam2_preset("sam2.1_large")
