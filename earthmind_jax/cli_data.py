"""The commands ``earthmind data ...``; see :mod:`earthmind_jax.cli`."""

from __future__ import annotations

import functools
import json
import sys
import textwrap
from pathlib import Path
from typing import Annotated, Any

import tyro

from earthmind_jax.errors import UserError

app = tyro.extras.SubcommandApp()
SHOWN = 20  # problems that are printed; --json has them all


@app.command
def check(
    file: Path,
    /,
    as_: Annotated[str, tyro.conf.arg(name="as")] = "",
    split: str = "",
    config: Path | None = None,
    tokenizer: Path | None = None,
    pixels: bool = False,
    skip_broken: bool = False,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Check a record file, or a published data set, line by line and count what it holds; exit code 2 where a line is
    broken.

    Images are opened as far as their headers, masks and regions are read. Lines with the id of an earlier one are told,
    but not broken: training takes them all ("ask --batch" does not).

    Example: earthmind data check records.jsonl --config configs/tiny.py --tokenizer runs/tiny/tokenizer

    Args:
        file: one JSON object per line (earthmind_jax/data/records.py), or the directory of a data set.
        as_: name of the data set (see the command "list"); recognised by its layout where none is given.
        split: of the data set; its first where none is given.
        config: Python file of the run it is for: bands, tiles and lengths are then those.
        tokenizer: Hugging Face tokenizer directory; measures the conversations, and the padding that they need.
        pixels: read every image as training would, which takes longer and finds damage and pairs that do not overlap.
        skip_broken: exit code 0 all the same, if a line is left.
        as_json: print JSON.
    """
    from rich.progress import Progress, TextColumn, TimeElapsedColumn

    from earthmind_jax.config import RunConfig
    from earthmind_jax.data.check import check_records
    from earthmind_jax.data.collate import with_tokens
    from earthmind_jax.data.datasets import recognise
    from earthmind_jax.data.tokenizer import Tokenizer
    from earthmind_jax.train.run import load_config

    run = RunConfig() if config is None else load_config(config)
    words = None if tokenizer is None else Tokenizer.load(tokenizer)
    model = run.model if words is None else with_tokens(run.model, words)
    columns = (TextColumn("{task.description} {task.completed} lines"), TimeElapsedColumn())
    with Progress(*columns, console=_console(), transient=True) as bar:
        task = bar.add_task("checking", total=None)
        named = {"dataset": as_, "split": split}
        advance = functools.partial(bar.advance, task)
        report = check_records(file, model, run.data, words, pixels=pixels, progress=advance, **named)
    facts = {"file": str(file), **({"data set": as_ or recognise(file)} if file.is_dir() else {}), **report.to_dict()}
    print(json.dumps(facts, indent=2, ensure_ascii=False) if as_json else _text(facts))
    if report.broken and not (skip_broken and report.broken < facts["lines"]):
        raise UserError(f"{report.broken} of {facts['lines']} lines of '{file}' are broken: {report.problems[0]}")


@app.command(name="list")
def list_(as_json: Annotated[bool, tyro.conf.arg(name="json")] = False) -> None:
    """List the published data sets that can be read: title, splits, licence, and the layout they are expected in.

    Example: earthmind data list

    Args:
        as_json: print JSON.
    """
    from earthmind_jax.data import datasets

    told = ("title", "splits", "licence", "source", "layout")
    facts = {name: {key: getattr(datasets.get(name), key) for key in told} for name in datasets.names()}
    if as_json:
        print(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    for name, fact in facts.items():
        print(f"{name}: {fact['title']}\n  splits   {', '.join(fact['splits'])}\n  licence  {fact['licence']}")
        print(
            f"  source   {fact['source']}\n" + textwrap.indent(textwrap.dedent(fact["layout"]).strip(), "    ") + "\n"
        )


@app.command
def convert(
    directory: Path,
    out: Path,
    /,
    as_: Annotated[str, tyro.conf.arg(name="as")] = "",
    split: str = "",
    skip_broken: bool = False,
) -> None:
    """Write the records of a published data set as a record file whose paths start from the file's own directory.

    Example: earthmind data convert BigEarthNet-v2 ben_train.jsonl --split train

    Args:
        directory: of the data set.
        out: record file to write.
        as_: name of the data set (see the command "list"); recognised by its layout where none is given.
        split: of the data set; its first where none is given.
        skip_broken: leave out broken entries, naming each; without it the first one stops the writing.
    """
    from rich.progress import track

    from earthmind_jax.data import datasets
    from earthmind_jax.data.convert import write_records

    found = datasets.read(directory, as_ or None, split or None)
    lines = track(found, "reading", total=None, console=_console(), transient=True)
    written, broken = write_records(out, lines, lambda line: print(line, file=sys.stderr), skip_broken=skip_broken)
    print(f"wrote {out}, {written} records" + (f", {broken} broken entries left out" if broken else ""))


@app.command
def unpack(path: Path, /) -> None:
    """Unpack the zip and tar files of a data set beside them.

    Names that lead elsewhere, links and archives made to fill a disk are refused, and nothing of such an archive is
    left. Of a directory those that were unpacked before are left as they are, so that the same command goes on.

    Example: earthmind data unpack downloads/so2sat

    Args:
        path: an archive, or a directory with some.
    """
    from rich.progress import DownloadColumn, Progress, TextColumn, TimeElapsedColumn

    from earthmind_jax.data.archives import AlreadyThere, is_archive
    from earthmind_jax.data.archives import unpack as unpack_one

    archives = sorted(filter(is_archive, path.iterdir())) if path.is_dir() else [path]
    if not archives:
        raise UserError(f"'{path}' holds no archive.")
    left: list[AlreadyThere] = []
    columns = (TextColumn("{task.description}"), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns, console=_console(), transient=True) as bar:
        for archive in archives:
            task = bar.add_task(archive.name, total=None)
            try:
                made = unpack_one(archive, functools.partial(bar.advance, task))
            except AlreadyThere as error:
                left.append(error)
                continue
            print("".join(f"unpacked {one}\n" for one in made[:SHOWN]), end="")
            if len(made) > SHOWN:
                print(f"... and {len(made) - SHOWN} more of '{archive}'")
    if left:
        raise UserError(str(left[0]) if len(archives) == 1 else f"{len(left)} of {len(archives)} left: {left[0]}")


def _console() -> Any:
    from rich.console import Console

    return Console(stderr=True)


def _text(facts: dict[str, Any]) -> str:
    listed = ("problems", "repeated ids")
    lines = [f"{key:>9}  {_value(value)}" for key, value in facts.items() if key not in listed and value is not None]
    problems = _first(facts["problems"], facts.get("untold", 0))
    told = facts.get("repeated ids", [])
    return "\n".join([*problems, *_first(told, facts["repeated"] - len(told) if told else 0), *lines])


def _first(sentences: list[str], untold: int) -> list[str]:
    """The first sentences, and how many more there are."""
    kept = f"the first {len(sentences)}" if untold else "all"
    beyond = len(sentences) - SHOWN + untold
    return [*sentences[:SHOWN], *([f"... and {beyond} more (--json shows {kept})"] if beyond > 0 else [])]


def _value(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    return ", ".join(f"{key}: {v:.1%}" if isinstance(v, float) else f"{key}: {v}" for key, v in value.items())
