"""A part of a parameter comes from a part of its source tensor."""

from __future__ import annotations

import numpy as np
import pytest

from checkpoints_convert.regions import region
from checkpoints_convert.transforms import transform

SIZES = {"N": 6, "K": 3, "g": 2, "h": 4, "D": 5, "O": 7, "I": 6, "C": 3, "r": 2}
CASES = {  # pattern -> whether a range of its leading axis is one range of the source
    "D -> D": True,
    "O I -> I O": True,
    "(N h) D -> D N h": True,
    "D (N h) -> N h D": True,
    "1 1 D -> D": True,
    "O C r h -> r h C O": True,
    "{N h|N h|N h} D -> D N h": True,
    "{N h|K h|K h} D -> D N h | D K h | D K h": True,
    "(K {g|1|1} h) D -> D (K g) h | D K h | D K h": False,
    "(K g h) D -> D (K g) h": True,
}


@pytest.mark.parametrize("pattern", CASES)
@pytest.mark.parametrize("seed", range(8))
def test_any_part_of_any_target(pattern, seed):
    rng, how = np.random.default_rng(seed), transform(pattern)
    source = rng.standard_normal(how.source_shape(SIZES)).astype(np.float32)
    for piece, whole in enumerate(how.forward(source, SIZES)):
        ends = [sorted(rng.choice(size + 1, 2, replace=False)) for size in whole.shape]
        if seed == 0:
            ends = [(0, size) for size in whole.shape]
        if seed == 1:  # rows of the leading axis only
            ends[1:] = [(0, size) for size in whole.shape[1:]]
        wanted = [(int(a), int(b)) for a, b in ends]
        part = region(how, SIZES, piece, wanted)
        block = source[part.source]
        expected = whole[tuple(slice(a, b) for a, b in wanted)]
        np.testing.assert_array_equal(part.forward(block), expected)
        if part.exact:
            np.testing.assert_array_equal(part.inverse(expected), block)
        if seed <= 1:
            assert part.exact == CASES[pattern]
            if part.exact:
                assert block.size == expected.size


def test_a_share_of_the_heads_reads_a_share_of_the_bytes():
    how = transform("{N h|N h|N h} D -> D N h")
    part = region(how, SIZES, 1, [(0, 5), (2, 4), (0, 4)])
    assert part.source == (slice(24 + 8, 24 + 16), slice(0, 5))
