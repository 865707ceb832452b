"""What a run is trained on: the parts of a mixture, and how their samples become batches."""

from __future__ import annotations

from dataclasses import dataclass

from earthmind_jax.config.checks import require


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One part of a training mixture: a record file, a published data set or simulated scenes. Shares follow the
    weights, or where no source has one, the numbers of samples times ``repeat``."""

    path: str = ""  # record file, or directory of a data set, from that of the configuration file (or --data-root)
    dataset: str = ""  # name of the data set (earthmind data list); recognised where empty
    split: str = ""  # of the data set; its first where empty
    simulated: int = 0  # number of scenes
    weight: float | None = None
    repeat: int = 1  # counts as so many copies
    name: str = ""  # file name without its ending where empty

    def __post_init__(self) -> None:
        require(
            bool(self.path) != (self.simulated > 0),
            f"A source needs a path or a number of simulated scenes, and not both: path '{self.path}', "
            f"simulated {self.simulated}.",
        )
        require(bool(self.path) or not (self.dataset or self.split), "A source with a dataset or split needs its path.")
        require(self.weight is None or self.weight > 0, f"The weight of a source must be positive, not {self.weight}.")
        require(self.repeat > 0, f"repeat of a source must be positive, not {self.repeat}.")
        require(self.weight is None or self.repeat == 1, "A source has a weight or is repeated, not both.")

    @property
    def title(self) -> str:
        """What reports call it."""
        return self.name or self.path.replace("\\", "/").rstrip("/").rpartition("/")[2].partition(".")[0] or "simulated"


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    batch_size: int = 32
    text_length: int = 512  # longest prompt plus answer, tokens
    text_buckets: tuple[int, ...] = ()  # lengths that batches are padded to, the last text_length; empty: that alone
    tile_buckets: tuple[int, ...] = ()  # tiles that batches are padded to; empty: data.buckets.Buckets.tiles
    window: int = 1  # batches whose samples are sorted by size before they are dealt out; 1: as they come
    masks_per_sample: int = 5
    prompt_points: int = 8  # of the marks that steer one mask (records' "steer"), box corners included
    turns: int = 6  # questions packed into one conversation
    drop_optical: float = 0.15  # share of samples that show SAR alone
    drop_sar: float = 0.15
    workers: int = 0  # processes that prepare batches; 0: threads
    threads: int = 2
    sources: tuple[SourceConfig, ...] = ()  # empty: --data, or simulated scenes
    tasks: tuple[str, ...] = ()  # of simulated scenes; empty = all
    sky: str | None = None  # of simulated scenes: clear, partly, cloudy; None = mixed
    # Of simulated scenes, drawn equally often: pixels of a scene's side and of the part that is shown; empty: all of 64
    views: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        for name in ("text_buckets", "tile_buckets"):
            sizes = getattr(self, name)
            increasing = all(a < b for a, b in zip((0, *sizes), sizes, strict=False))
            require(increasing, f"data.{name} must be increasing positive numbers, not {list(sizes)}.")
        for side, shown in self.views:
            require(16 <= shown <= side, f"data.views must show 16 pixels to all of a scene, not {shown} of {side}.")
        require(self.workers >= 0, f"data.workers must not be negative, as {self.workers} is.")
        require(self.threads > 0, f"data.threads must be at least 1, not {self.threads}.")
        require(self.prompt_points > 1, f"data.prompt_points must be at least 2, not {self.prompt_points}.")
        require(self.window > 0, f"data.window must be at least 1, not {self.window}.")
        titles = [source.title for source in self.sources]
        require(
            len(set(titles)) == len(titles), f"data.sources need names of their own, not {', '.join(titles)}: set name."
        )
        weighed = sum(source.weight is not None for source in self.sources)
        require(
            weighed in (0, len(self.sources)),
            "Either every source of data.sources has a weight or none; give the others one.",
        )
