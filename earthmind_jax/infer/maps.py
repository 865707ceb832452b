"""The masks of an answer as maps: rasters, polygons in two coordinate systems, and a STAC Item about them."""

from __future__ import annotations

from pathlib import Path

from earthmind_jax import __version__
from earthmind_jax.geo.geopackage import write_geopackage
from earthmind_jax.geo.grid import Grid
from earthmind_jax.geo.stac import stac_item, write_stac_item
from earthmind_jax.geo.vector import Polygons, trace_polygons, write_geojson
from earthmind_jax.geo.write import write_mask_cog, write_probability_cog
from earthmind_jax.infer.result import Answer
from earthmind_jax.infer.windows import stretched


def write_maps(answer: Answer, place: Path, directory: Path) -> list[Path]:
    """Write the masks of an answer, at least one, into the directory ``place``; the names stand in ``Answer.save``.

    Args:
      directory: where the files move from there.

    Returns: the files written.

    Raises:
      UserError: the masks have no place on Earth.
      WorkError: a file could not be written.
    """
    first = answer.masks[0]
    traced = [_traced(answer, number) for number in range(1, len(answer.masks) + 1)]
    files: dict[str, Path] = {}
    for name, mask, polygons in zip(answer.names, answer.masks, traced, strict=True):
        tags = {"prompt": answer.question, "model": answer.model, "score": round(mask.score, 4)}
        on_map, kept = (mask.transform, mask.crs), {"valid": mask.valid, "tags": tags}
        files[name] = place / f"{name}.tif"
        write_mask_cog(files[name], mask.array, *on_map, **kept)
        files[f"{name}_probability"] = place / f"{name}_probability.tif"
        write_probability_cog(files[f"{name}_probability"], mask.probability, *on_map, **kept)
        files[f"{name}_polygons"] = place / f"{name}.geojson"
        write_geojson(files[f"{name}_polygons"], polygons.geojson())
    files["polygons"] = place / "masks.gpkg"
    features = [feature for polygons in traced for feature in polygons.features()]
    write_geopackage(files["polygons"], features, first.crs)
    item = stac_item(
        directory.resolve().name or "answer",
        Grid(first.transform, first.crs, *first.array.shape),
        files,
        directory,
        software={"earthmind_jax": __version__},
        inputs=answer.sources,
        notes=answer.notes,
        properties={
            "earthmind:question": answer.question,
            "earthmind:answer": answer.text,
            "earthmind:model": answer.model,
            "earthmind:sensor_shares": answer.sensor_shares,
        },
        staging=place,
    )
    write_stac_item(place / "item.json", item)
    return [*files.values(), place / "item.json"]


def _traced(answer: Answer, number: int) -> Polygons:
    """The polygons of one mask, each with the mean weight of the sensors over it."""
    mask = answer.masks[number - 1]
    weights = {}
    if answer.fusion is not None:
        for i, name in enumerate(("optical_weight", "sar_weight")):
            weights[name] = stretched(answer.fusion[..., i], mask.array.shape)
    date = {"date": mask.date} if mask.date else {}
    return trace_polygons(
        mask.array, mask.transform, mask.crs, prompt=answer.question, model=answer.model,
        probability=mask.probability, layers=weights, properties={"mask": number} | date,
    )  # fmt: skip
