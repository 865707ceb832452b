"""The pictures of an explanation's page, inside the page itself."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from earthmind_jax.geo.marks import Mark
from earthmind_jax.infer.mark_lines import COLOUR, lines_of

LINED = 360  # pixels of the longest side that pictures with lines are brought near to
MASK, OPTICAL, SAR, ABSENT, CLOUD = (
    (255, 0, 180),
    (214, 96, 30),
    (33, 102, 172),
    (120, 120, 120),
    (0, 200, 255),
)


class Pictures:
    """Makes the page's pictures and counts their bytes.

    Attributes:
      side: longest side in pixels; larger images are averaged down.
    """

    def __init__(self, side: int) -> None:
        self.side, self.bytes = side, 0

    def figure(
        self,
        image: np.ndarray,
        title: str,
        *,
        overlay: np.ndarray | None = None,
        tint: np.ndarray | None = None,
        colour: tuple[int, int, int] = MASK,
        strength: float = 0.55,
        marks: Sequence[Mark] = (),
    ) -> str:
        """An image [H W 3] with a caption; ``overlay`` bool [h w] is painted over it, or colours ``tint`` [h w 3], and
        ``marks`` are drawn."""
        shape = self._size(image.shape[:2])
        pixels = _resized(image.astype(np.uint8), shape, Image.Resampling.BOX).astype(np.float32)
        if overlay is not None:
            cover = _resized(overlay.astype(np.uint8) * 255, shape, Image.Resampling.BOX)[..., None] / np.float32(255)
            pixels = pixels * (1 - strength * cover) + np.float32(colour) * strength * cover
        if tint is not None:
            over = _resized(tint, shape, Image.Resampling.NEAREST).astype(np.float32)
            pixels = 0.45 * pixels + 0.55 * over
        buffer = io.BytesIO()
        picture = _pointed_at(Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8)), marks)
        small = picture.width * picture.height <= 128 * 128  # where JPEG's blocks would show
        picture.save(buffer, format="PNG" if small else "JPEG", **({} if small else {"quality": 82}))
        data = base64.b64encode(buffer.getvalue()).decode()
        self.bytes += len(data)
        kind = "png" if small else "jpeg"
        source = f"data:image/{kind};base64,{data}"
        return f'<figure><img alt="{plain(title)}" src="{source}"><figcaption>{plain(title)}</figcaption></figure>'

    def _size(self, shape: Sequence[int]) -> tuple[int, int]:
        scale = min(1.0, self.side / max(shape))
        return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


def _pointed_at(picture: Image.Image, marks: Sequence[Mark]) -> Image.Image:
    """A picture with what is pointed at; a small one is enlarged, so that lines do not cover what they surround."""
    if not marks:
        return picture
    times = max(1, LINED // max(picture.size))
    picture = picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(picture)
    for mark in marks:
        found = lines_of(mark, (picture.height, picture.width))
        for width, colour in ((4, (0, 0, 0)), (2, COLOUR)):
            for line in found.lines:
                pen.line([tuple(position) for position in line.tolist()], fill=colour, width=width)
        for (x, y), label in zip(found.points.tolist(), found.labels.tolist(), strict=True):
            fill = COLOUR if label else (0, 0, 0)
            pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill=fill, outline=(0, 0, 0) if label else COLOUR)
        name = found.name.encode("ascii", "replace").decode()  # the font that is always there has no other letters
        pen.text((found.corner[0] + 3, found.corner[1] + 2), name, fill=COLOUR, stroke_width=1, stroke_fill=(0, 0, 0))
    return picture


def _resized(image: np.ndarray, shape: tuple[int, int], method: Image.Resampling) -> np.ndarray:
    if image.shape[:2] == shape:
        return image
    return np.asarray(Image.fromarray(image).resize((shape[1], shape[0]), method))


def ramp(share: np.ndarray) -> np.ndarray:
    """uint8 [... 3]: the colour of optical at 0, white in the middle, that of SAR at 1."""
    x = np.asarray(share, np.float32)[..., None]
    low, middle, high = (np.array(c, np.float32) for c in (OPTICAL, (255, 255, 255), SAR))
    colour = np.where(x < 0.5, low + (middle - low) * 2 * x, middle + (high - middle) * (2 * x - 1))
    return np.clip(np.rint(colour), 0, 255).astype(np.uint8)


_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


def plain(words: object) -> str:
    """Anything as text of the page; whatever could be markup or no character is made harmless."""
    return html.escape(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", str(words)), quote=True)
