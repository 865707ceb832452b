"""How far one image still lies beside another after alignment: reported, never applied.

Phase correlation (Kuglin and Hines 1975) of edges: of the logarithm of the gradient's magnitude, since a field that is
bright to one sensor is dark to the other, but its border is a border to both. Summed over windows spread over the
scene, so that the cost does not grow with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

WINDOW = 256  # pixels, side of what is correlated at once
WINDOWS = 9
SMALLEST = 48  # pixels, side below which nothing is said
BANDS = 4  # of each image, spread over its bands
SMOOTHING = 1.0  # pixels, standard deviation
PASS_BAND = 0.1  # cycles per pixel, standard deviation of the Gaussian low-pass on the phases
FARTHEST = 16  # pixels
NEIGHBOURHOOD = 5  # pixels around the peak that belong to it
LEAST_PEAK = 9.0  # times the root mean square of the surface; noise stays below 8
LEAST_CONFIDENCE = 0.45
LEAST_PARTS = 2  # quarters of the scene that tell the same by themselves; none may tell another with confidence
AGREEMENT = 1.0  # pixels: simulated quarters of 112 pixels are right to 0.8; relief moves parts by 2 and more
FINE = 20  # steps per pixel
LEAST_VALID = 0.5


@dataclass(frozen=True)
class Shift:
    """The second image's content lies ``rows`` pixels lower and ``columns`` pixels more to the right than the first's.

    ``confidence`` is 1 minus the height of the next best peak over that of the best (0..1).
    """

    rows: float
    columns: float
    confidence: float

    @property
    def length(self) -> float:
        """Pixels."""
        return float(np.hypot(self.rows, self.columns))


def residual_shift(
    first: np.ndarray, first_valid: np.ndarray, second: np.ndarray, second_valid: np.ndarray
) -> Shift | None:
    """The shift between two images [C H W] on one grid (``valid`` bool [H W]); None where it cannot be told with
    confidence: too small, too little valid in both, no clear peak within 16 pixels, or quarters of the scene that do
    not agree on one shift."""
    height, width = first.shape[-2:]
    whole = _measure(first, first_valid, second, second_valid)
    if whole is None or whole.peak < LEAST_PEAK or whole.confidence < LEAST_CONFIDENCE:
        return None
    agreeing = 0
    for rows in (slice(0, height // 2), slice(height // 2, height)):
        for columns in (slice(0, width // 2), slice(width // 2, width)):
            here = (..., rows, columns)
            part = _measure(first[here], first_valid[here], second[here], second_valid[here])
            if part is None:
                continue
            if np.hypot(part.rows - whole.rows, part.columns - whole.columns) <= AGREEMENT:
                agreeing += 1  # one of a thousand square pixels, so hardly by chance
            elif part.confidence >= LEAST_CONFIDENCE:
                return None
    if agreeing < LEAST_PARTS:
        return None
    return Shift(round(whole.rows, 2), round(whole.columns, 2), round(whole.confidence, 2))


@dataclass(frozen=True)
class _Peak:
    """As :class:`Shift`, unrounded; ``peak``: its height over the root mean square of the surface."""

    rows: float
    columns: float
    confidence: float
    peak: float


def _measure(first: np.ndarray, first_valid: np.ndarray, second: np.ndarray, second_valid: np.ndarray) -> _Peak | None:
    """The best shift, however bad; None where there is too little to measure, or the best is too far."""
    shape = first.shape[-2:]
    valid = first_valid & second_valid
    side = [min(WINDOW, n) for n in shape]
    if min(shape) < SMALLEST:
        return None
    spectrum = None
    for rows, columns in _windows(shape, side):
        both = valid[rows, columns]
        if both.mean() < LEAST_VALID:
            continue
        edges = [_edges(image[:, rows, columns][_some_bands(len(image))], both) for image in (first, second)]
        if min(edge.std() for edge in edges) == 0:
            continue
        ours, theirs = (np.fft.rfft2(edge * _taper(side)) for edge in edges)
        cross = theirs * np.conj(ours)
        size = np.abs(cross)
        phase = cross / np.maximum(size, 1e-9 * size.max())
        spectrum = phase if spectrum is None else spectrum + phase
    if spectrum is None:
        return None
    down, across = np.fft.fftfreq(side[0])[:, None], np.fft.rfftfreq(side[1])[None]
    spectrum = spectrum * np.exp(-(down**2 + across**2) / (2 * PASS_BAND**2))
    return _best(spectrum, side)


def _windows(shape: tuple[int, int], side: list[int]) -> Iterator[tuple[slice, slice]]:
    """At most ``WINDOWS`` windows, spread evenly."""
    per_axis = int(np.sqrt(WINDOWS))
    starts = [
        np.unique(np.linspace(0, n - s, max(1, min(per_axis, n // s))).astype(int))
        for n, s in zip(shape, side, strict=True)
    ]
    for row in starts[0]:
        for column in starts[1]:
            yield slice(row, row + side[0]), slice(column, column + side[1])


def _some_bands(count: int) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, min(count, BANDS)).astype(int))


def _edges(bands: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Logarithm of the gradient's magnitude over all bands, each in units of its own spread; zero mean, 0 where the
    gradient touches invalid pixels."""
    weight = _smooth(valid.astype(np.float32))
    known = weight > 0.99
    if not known.any():
        return np.zeros(valid.shape, np.float32)
    squares = np.zeros(valid.shape, np.float32)
    for band in bands:
        inside = band[valid]
        spread = inside.std()
        if not spread > 0:
            continue
        scaled = np.where(valid, (band - inside.mean()) / spread, 0).astype(np.float32)
        for slope in np.gradient(_smooth(scaled) / np.maximum(weight, 1e-3)):
            squares += slope**2
    size = np.sqrt(squares)
    middle = float(np.median(size[known]))
    if middle == 0:
        middle = float(size[known].mean()) or 1.0
    edges = np.log(size + 0.3 * middle)
    return np.where(known, edges - edges[known].mean(), 0).astype(np.float32)


def _smooth(image: np.ndarray) -> np.ndarray:
    """Gaussian of ``SMOOTHING``, edges repeated."""
    reach = int(np.ceil(3 * SMOOTHING))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / SMOOTHING) ** 2)
    kernel = (kernel / kernel.sum()).astype(np.float32)
    for axis in (0, 1):
        padded = np.pad(image, [(reach, reach) if a == axis else (0, 0) for a in (0, 1)], mode="edge")
        image = sum(k * np.take(padded, np.arange(i, i + image.shape[axis]), axis=axis) for i, k in enumerate(kernel))
    return image


def _taper(side: list[int]) -> np.ndarray:
    """Hann window: the image's own edges are no edges."""
    down, across = (np.hanning(n + 2)[1:-1] for n in side)
    return (down[:, None] * across).astype(np.float32)


def _best(spectrum: np.ndarray, side: list[int]) -> _Peak | None:
    """The best place, to a fraction of a pixel, of a correlation given by its spectrum [H W/2+1]."""
    surface = np.fft.irfft2(spectrum, s=side)
    spread = float(np.sqrt(np.mean(surface**2)))
    reach = min(FARTHEST, min(side) // 4)
    near = np.roll(surface, (reach, reach), (0, 1))[: 2 * reach + 1, : 2 * reach + 1].copy()
    row, column = np.unravel_index(near.argmax(), near.shape)
    highest = float(near[row, column])
    around = tuple(slice(max(0, i - NEIGHBOURHOOD), i + NEIGHBOURHOOD + 1) for i in (row, column))
    near[around] = -np.inf
    confidence = 1 - max(0.0, float(near.max())) / highest if highest > 0 else 0.0
    at_edge = max(abs(row - reach), abs(column - reach)) == reach  # the best may lie beyond
    if at_edge or highest <= 0:
        return None
    rows, columns = _refined(spectrum, side, row - reach, column - reach)
    return _Peak(rows, columns, confidence, highest / spread)


def _refined(spectrum: np.ndarray, side: list[int], row: int, column: int) -> tuple[float, float]:
    """The maximum within a pixel of (row, column), by the inverse transform at steps of 1 / ``FINE`` pixel only
    (Guizar-Sicairos et al. 2008)."""
    steps = np.arange(-FINE, FINE + 1) / FINE
    down = np.exp(2j * np.pi * np.outer(row + steps, np.fft.fftfreq(side[0])))
    across = np.exp(2j * np.pi * np.outer(np.fft.rfftfreq(side[1]), column + steps))
    across[1 : (side[1] + 1) // 2] *= 2  # the half of the spectrum that rfft2 leaves out
    surface = (down @ spectrum @ across).real
    i, j = np.unravel_index(surface.argmax(), surface.shape)
    return float(row + steps[i]), float(column + steps[j])
