"""The commands ``earthmind data ...``; see :mod:`earthmind_jax.cli`."""

from __future__ import annotations

import json
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
    config: Path | None = None,
    tokenizer: Path | None = None,
    pixels: bool = False,
    skip_broken: bool = False,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Check a record file line by line and count what it holds; exit code 2 where a line is broken.

    Images are opened as far as their headers, masks and regions are read.

    Example: earthmind data check records.jsonl --config configs/tiny.py --tokenizer runs/tiny/tokenizer

    Args:
        file: one JSON object per line (earthmind_jax/data/records.py).
        config: Python file of the run it is for: bands, tiles and lengths are then those.
        tokenizer: Hugging Face tokenizer directory; measures the conversations, and the padding that they need.
        pixels: read every image as training would, which takes longer and finds damage and pairs that do not overlap.
        skip_broken: exit code 0 all the same, if a line is left.
        as_json: print JSON.
    """
    from rich.console import Console
    from rich.progress import Progress, TextColumn, TimeElapsedColumn

    from earthmind_jax.config import RunConfig
    from earthmind_jax.data.check import check_records
    from earthmind_jax.data.collate import with_tokens
    from earthmind_jax.data.tokenizer import Tokenizer
    from earthmind_jax.train.run import load_config

    run = RunConfig() if config is None else load_config(config)
    words = None if tokenizer is None else Tokenizer.load(tokenizer)
    model = run.model if words is None else with_tokens(run.model, words)
    columns = (TextColumn("{task.description} {task.completed} lines"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("checking", total=None)
        report = check_records(file, model, run.data, words, pixels=pixels, progress=lambda: bar.advance(task))
    facts = {"file": str(file), **report.to_dict()}
    print(json.dumps(facts, indent=2, ensure_ascii=False) if as_json else _text(facts))
    if report.broken and not (skip_broken and report.broken < facts["lines"]):
        raise UserError(f"{report.broken} of {facts['lines']} lines of '{file}' are broken: {report.problems[0]}")


def _text(facts: dict[str, Any]) -> str:
    problems = facts["problems"]
    lines = [f"{key:>9}  {_value(value)}" for key, value in facts.items() if key != "problems" and value is not None]
    more = [f"... and {len(problems) - SHOWN} more (--json shows all)"] if len(problems) > SHOWN else []
    return "\n".join([*problems[:SHOWN], *more, *lines])


def _value(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    return ", ".join(f"{key}: {v:.1%}" if isinstance(v, float) else f"{key}: {v}" for key, v in value.items())
