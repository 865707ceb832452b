"""Every transform is a bijection: what is imported and exported again is the same, bit for bit, at any size."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from checkpoints_convert.transforms import ShapeMismatch, transform

# name -> (pattern, shapes of the targets from the sizes, the same written with numpy)
CASES = {
    "identity": ("D -> D", lambda s: [(s["D"],)], lambda x, s: [x]),
    "transpose": ("O I -> I O", lambda s: [(s["I"], s["O"])], lambda x, s: [x.T]),
    "permute": (
        "O I h w -> h w I O",
        lambda s: [(s["h"], s["w"], s["I"], s["O"])],
        lambda x, s: [x.transpose(2, 3, 1, 0)],
    ),
    "reshape": ("(N h) -> N h", lambda s: [(s["N"], s["h"])], lambda x, s: [x.reshape(s["N"], s["h"])]),
    "heads": (
        "(N h) D -> D N h",
        lambda s: [(s["D"], s["N"], s["h"])],
        lambda x, s: [x.T.reshape(s["D"], s["N"], s["h"])],
    ),
    "squeeze": ("1 S D -> S D", lambda s: [(s["S"], s["D"])], lambda x, s: [x[0]]),
    "squeeze all": ("1 1 D -> D", lambda s: [(s["D"],)], lambda x, s: [x[0, 0]]),
    "unsqueeze": ("D -> 1 D 1", lambda s: [(1, s["D"], 1)], lambda x, s: [x[None, :, None]]),
    "thirds": (
        "{N h|N h|N h} D -> D N h",
        lambda s: [(s["D"], s["N"], s["h"])] * 3,
        lambda x, s: [part.T.reshape(s["D"], s["N"], s["h"]) for part in np.split(x, 3)],
    ),
    "contiguous": (
        "{N h|K h|K h} D -> D N h | D K h | D K h",
        lambda s: [(s["D"], n, s["h"]) for n in (s["N"], s["K"], s["K"])],
        lambda x, s: [
            part.T.reshape(s["D"], -1, s["h"])
            for part in np.split(x, [s["N"] * s["h"], (s["N"] + s["K"]) * s["h"]])
        ],
    ),
    "grouped": (
        "(K {g|1|1} h) D -> D (K g) h | D K h | D K h",
        lambda s: [(s["D"], n, s["h"]) for n in (s["K"] * s["g"], s["K"], s["K"])],
        lambda x, s: [
            np.moveaxis(part.reshape(-1, s["h"], s["D"]), -1, 0)
            for part in np.split(x.reshape(s["K"], s["g"] + 2, s["h"], s["D"]), [s["g"], s["g"] + 1], axis=1)
        ],
    ),
    "halves": (
        "{F|F} D -> D F",
        lambda s: [(s["D"], s["F"])] * 2,
        lambda x, s: [part.T for part in np.split(x, 2)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_is_what_numpy_says_and_has_an_exact_inverse(name, dtype):
    pattern, shapes_of, reference = CASES[name]
    rng = np.random.default_rng(sum(name.encode()))
    how = transform(pattern)
    for _ in range(25):
        drawn = {axis: int(rng.integers(1, 7)) for axis in "DFIKNOShgw"}
        shapes = shapes_of(drawn)
        sizes = how.solve(shapes)
        source = rng.standard_normal(how.source_shape(sizes)).astype(dtype)
        forward = how.forward(source, sizes)
        assert [piece.shape for piece in forward] == shapes
        for piece, expected in zip(forward, reference(source, drawn), strict=True):
            np.testing.assert_array_equal(piece, expected)
        back = how.inverse(forward, sizes)
        assert back.dtype == source.dtype
        np.testing.assert_array_equal(back, source)


@pytest.mark.parametrize("name", CASES)
def test_export_then_import_is_exact_too(name):
    pattern, shapes_of, _ = CASES[name]
    rng = np.random.default_rng(1)
    how = transform(pattern)
    shapes = shapes_of({axis: int(rng.integers(1, 7)) for axis in "DFIKNOShgw"})
    sizes = how.solve(shapes)
    targets = [rng.standard_normal(shape) for shape in shapes]
    for again, target in zip(how.forward(how.inverse(targets, sizes), sizes), targets, strict=True):
        np.testing.assert_array_equal(again, target)


@pytest.mark.parametrize(
    ("pattern", "shapes"),
    [
        ("O I -> I O", [(3,)]),  # wrong rank
        ("{N h|K h|K h} D -> D N h | D K h | D K h", [(4, 2, 3), (4, 2, 3), (4, 3, 3)]),  # k and v differ
        ("(K {g|1|1} h) D -> D (K g) h | D K h | D K h", [(4, 5, 3), (4, 2, 3), (4, 2, 3)]),  # 5 heads in 2 groups
        ("1 S D -> S D", [(3, 4, 5)]),
        ("(a b) -> (a b)", [(6,)]),  # nothing says what a and b are
    ],
)
def test_shapes_that_cannot_be(pattern, shapes):
    with pytest.raises(ShapeMismatch):
        transform(pattern).solve(shapes)


@pytest.mark.parametrize(
    "pattern", ["O I", "O I -> I", "O -> O I", "O O -> O O", "{a|b} {c|d} -> a c | b d", "{a|b|c} -> a | b", "(a -> a"]
)
def test_patterns_that_are_no_bijection(pattern):
    with pytest.raises(ValueError):
        transform(pattern)
