"""Images as their sensors see them: placed by control points or RPCs alone, and what each of their pixels must show."""

from __future__ import annotations

import numpy as np
import rasterio
from rasterio.control import GroundControlPoint
from rasterio.rpc import RPC

from earthmind_jax.geo.grid import WGS84

HEIGHT, WIDTH = 300, 260
METRES = 111320.0
LONGITUDE, LATITUDE = 9.2, 45.1  # of the image's centre


def swath(columns, rows):
    """Longitude and latitude of a made-up right-looking swath: turned by 12 degrees, and bent by some pixels."""
    u, v = (columns - WIDTH / 2) * 10, (rows - HEIGHT / 2) * 10
    u = u + 3e-6 * u * v + 2e-8 * v**2 * abs(v) ** 0.5
    angle = np.radians(12)
    east, north = np.cos(angle) * u + np.sin(angle) * v, np.sin(angle) * u - np.cos(angle) * v
    return LONGITUDE + east / (METRES * np.cos(np.radians(LATITUDE))), LATITUDE + north / METRES


def lattice(per_side=9, wrong=0.0):
    points = []
    for row in np.linspace(0, HEIGHT, per_side):
        for column in np.linspace(0, WIDTH, per_side):
            x, y = swath(column, row)
            points.append(GroundControlPoint(row=row, col=column, x=x, y=y, z=0.0))
    if wrong:
        rng = np.random.default_rng(0)
        for point in points:
            point.x += rng.normal(0, wrong)
    return points


def ground(longitude, latitude):
    """-20..-8 dB, a function of the place alone: waves of some 600 m."""
    x, y = (longitude - LONGITUDE) * METRES, (latitude - LATITUDE) * METRES
    return -14 + 3 * np.sin(x / 90) + 3 * np.cos(y / 110)


def written(path, gcps=None, rpcs=None, centres=swath, **profile):
    columns, rows = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
    longitude, latitude = centres(columns, rows)
    power = 10 ** (ground(longitude, latitude) / 10)
    with rasterio.open(
        path, "w", driver="GTiff", count=2, height=HEIGHT, width=WIDTH, dtype="float32", **profile
    ) as dataset:
        dataset.write(np.stack([power, power / 4]).astype(np.float32))
        dataset.update_tags(scale="linear")
        if gcps:
            dataset.gcps = gcps, WGS84
        if rpcs:
            dataset.rpcs = rpcs
    return path


LEAN = 0.2  # pixels down for each metre of height


def leaning():
    """RPCs of a north-up view of 10 m pixels that leans: sample 0 and line 0 are the centre of the first pixel."""
    lon_scale, lat_scale, height_scale = 0.05, 0.04, 500.0
    columns = lon_scale * METRES * np.cos(np.radians(LATITUDE)) / 10
    rows = lat_scale * METRES / 10
    terms = np.zeros((4, 20))
    terms[0, 2], terms[0, 3] = -rows / 1000, LEAN * height_scale / 1000  # line: latitude, height
    terms[2, 1] = columns / 1000  # sample: longitude
    terms[1, 0] = terms[3, 0] = 1
    return RPC(
        err_bias=None, err_rand=None, height_off=200.0, height_scale=height_scale, lat_off=LATITUDE,
        lat_scale=lat_scale, long_off=LONGITUDE, long_scale=lon_scale, line_off=HEIGHT / 2 - 0.5, line_scale=1000.0,
        samp_off=WIDTH / 2 - 0.5, samp_scale=1000.0, line_num_coeff=terms[0].tolist(),
        line_den_coeff=terms[1].tolist(), samp_num_coeff=terms[2].tolist(), samp_den_coeff=terms[3].tolist(),
    )  # fmt: skip


def flat_at(height):
    """What the view above sees of flat ground at a height: (columns, rows) -> longitude, latitude."""

    def centres(columns, rows):
        rows = rows - LEAN * (height - 200)
        longitude = LONGITUDE + (columns - WIDTH / 2) * 10 / (METRES * np.cos(np.radians(LATITUDE)))
        return longitude, LATITUDE - (rows - HEIGHT / 2) * 10 / METRES

    return centres
