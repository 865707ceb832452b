"""The commands ``earthmind ask`` and ``earthmind chat``; see :mod:`earthmind_jax.cli`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from earthmind_jax.cli_info import TOLD
from earthmind_jax.cli_marks import NOWHERE, Pointing
from earthmind_jax.cli_paths import check_directory, check_page, limit_cache, words_after
from earthmind_jax.cli_print import print_answer
from earthmind_jax.cli_scene import ask_large, explained, large, tell_of_reading
from earthmind_jax.errors import UserError, WorkError
from earthmind_jax.geo.told import NOTHING, Told

if TYPE_CHECKING:
    from earthmind_jax.infer.conversation import Conversation


def ask(
    question: str = "",
    /,
    checkpoint: Path = Path("demo/checkpoint"),
    optical: tuple[Path, ...] = (),
    sar: tuple[Path, ...] = (),
    out: Path | None = None,
    explain: Path | None = None,
    batch: Path | None = None,
    masks: Path | None = None,
    batch_size: int = 8,
    skip_broken: bool = False,
    max_new: int = 128,
    temperature: float = 0.0,
    steer: bool = False,
    pointing: Pointing = NOWHERE,
    told: Annotated[Told, TOLD] = NOTHING,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Ask a question about an optical image, a SAR image, a pair, or several dates; or a whole file of questions.

    Example: earthmind ask "Is there water in the image?" --optical s2.tif --sar s1.tif

    Example: earthmind ask "How do region1 and region2 relate?" --optical s2.tif --box 10,10,60,40 --point 90,80

    Example: earthmind ask --batch questions.jsonl --out answers.jsonl

    Args:
        question: in plain words; "Please segment the water in this image." draws a mask.
        checkpoint: checkpoint directory.
        optical: Sentinel-2 GeoTIFF, a product as downloaded (.SAFE folder or zip, Landsat folder or tar, folder of
            band files), or an 8-bit picture; of a time series one for each date.
        sar: Sentinel-1 GeoTIFF (VV, VH), or a GRD product as downloaded; brought onto the optical grid; as many as
            optical, or one.
        out: directory for answer.json, panel.png, mask GeoTIFF and GeoJSON; with batch the JSONL file of answers.
        explain: HTML page that says what each sensor said alone, where each counted, and how it was made; of a large
            image from one look at the whole.
        batch: JSONL file, a question a line: {"id": ..., "question": ..., "optical": ..., "sar": ..., "region": ...},
            with "marks" (GeoJSON or a file), "prompt_crs", "crop", "area" and "steer" as the options of these names; or
            records of a data set, whose last turn is then asked. The same command continues a run that was stopped.
        masks: with batch, directory for the maps of each line, below its id.
        batch_size: with batch, questions that go through the model at once.
        skip_broken: with batch, write an error for each line that is broken instead of stopping before the first.
        max_new: longest answer, tokens.
        temperature: 0 is greedy.
        steer: what is pointed at also prompts the mask decoder, together with the words.
        pointing: places that the question is about.
        told: what the files do not say themselves.
        as_json: print JSON.
    """
    limit_cache()
    places = pointing.options()
    if batch is not None:
        facts = told.about("optical") + told.about("sar")
        given = {"optical": optical, "sar": sar, "explain": explain, "temperature": temperature}
        _refuse_with_batch(question=question, steer=steer, **given, **dict.fromkeys([*facts, *places], True))
        return _batch(batch, checkpoint, out, masks, batch_size, skip_broken, max_new, as_json)
    if masks is not None or skip_broken:
        raise UserError(f"--{'masks' if masks else 'skip-broken'} belongs to --batch; of one question, --out has all.")
    if not question:
        words, (optical, sar) = words_after(optical, sar)
        question = " ".join(words)
    if not question.strip():
        raise UserError("The question is empty; ask something, or give a file of questions with --batch.")
    _check(max_new, temperature)
    check_directory(out, *optical, *sar)
    check_page(explain)
    if steer and "marks" not in places:
        raise UserError("--steer is about what is pointed at: point at something, or leave it out.")
    from earthmind_jax.infer.predictor import EarthMind

    model = EarthMind.load(checkpoint)
    if not places and large(optical, sar, mapped=True):
        return ask_large(model, question, optical, sar, out, explain, max_new, temperature, told, as_json)
    given = {"optical": optical or None, "sar": sar or None, "max_new": max_new, "temperature": temperature}
    given |= {"told": told, **places}
    page, extra = [], {}
    if explain is None:
        answer = model.ask(question, steer=steer, **given)
    else:
        answer, page, extra = explained(model, question, explain, as_json, steer=steer, **given)
    files = [] if out is None else answer.save(out, maps=all(m.crs is not None for m in answer.masks))
    print_answer(answer, [*files, *page], as_json, extra)


def chat(
    checkpoint: Path = Path("demo/checkpoint"),
    optical: tuple[Path, ...] = (),
    sar: tuple[Path, ...] = (),
    max_new: int = 128,
    temperature: float = 0.0,
    told: Annotated[Told, TOLD] = NOTHING,
) -> None:
    """Talk about an image of any size, a question a line; features and cache are kept from turn to turn. Masks are
    drawn from what is in view at one look: of a large image zoom in, or draw with segment, for sharper ones.

    A line is a question, or one of: /zoom ROW COLUMN HEIGHT WIDTH (pixels of the whole image), /box WEST SOUTH EAST
    NORTH (degrees), /out (to what was in view before), /whole, /save DIR, /quit. Lines may be piped in.

    Example: earthmind chat --optical s2.tif --sar s1.tif

    Args:
        checkpoint: checkpoint directory.
        optical: Sentinel-2 GeoTIFF, a product as downloaded (.SAFE folder or zip, Landsat folder or tar, folder of
            band files), or an 8-bit picture; of a time series one for each date.
        sar: Sentinel-1 GeoTIFF (VV, VH), or a GRD product as downloaded; brought onto the optical grid; as many as
            optical, or one.
        max_new: longest answer, tokens.
        temperature: 0 is greedy.
        told: what the files do not say themselves.
    """
    limit_cache()
    _check(max_new, temperature)
    from earthmind_jax.infer.predictor import EarthMind

    talk = EarthMind.load(checkpoint).conversation(optical=optical or None, sar=sar or None, told=told)
    tell_of_reading(optical, sar)
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")
    asked = refused = 0
    while line := _line():
        words = line.strip()
        if words == "/quit":
            break
        if not words:
            continue
        asked += 1
        try:
            _turn(talk, words, max_new, temperature)
        except (UserError, WorkError) as error:
            refused += 1
            print(f"error: {error}", file=sys.stderr, flush=True)
    if refused and not sys.stdin.isatty():
        raise UserError(f"{refused} of {asked} lines were refused; what was wrong stands above.")


def _line() -> str:
    if sys.stdin.isatty():
        print("> ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline()


def _turn(talk: Conversation, words: str, max_new: int, temperature: float) -> None:
    if not words.startswith("/"):
        print_answer(talk.ask(words, max_new=max_new, temperature=temperature), [], False)
        sys.stdout.flush()
        return
    command, *rest = words.split()
    if command == "/zoom":
        talk.zoom(_numbers(rest))
    elif command == "/box":
        talk.zoom(_numbers(rest), crs="EPSG:4326")
    elif command == "/out":
        talk.zoom_out()
    elif command == "/whole":
        talk.whole()
    elif command == "/save":
        place = words.removeprefix("/save").strip()
        if not place:
            raise UserError("Name the directory to write to: /save DIR.")
        for path in talk.save(place):
            print(f"wrote {path}", flush=True)
    else:
        known = "/zoom, /box, /out, /whole, /save, /quit"
        raise UserError(f"There is no command '{command}'; there are {known}, and anything else is a question.")


def _numbers(words: list[str]) -> list[float]:
    try:
        return [float(word) for word in words]
    except ValueError as error:
        raise UserError(f"'{' '.join(words)}' are not numbers; give four.") from error


def _batch(
    file: Path,
    checkpoint: Path,
    out: Path | None,
    masks: Path | None,
    batch_size: int,
    skip_broken: bool,
    max_new: int,
    as_json: bool,
) -> None:
    from rich.console import Console

    from earthmind_jax.infer.batch import run
    from earthmind_jax.infer.requests import read_requests

    if out is None:
        raise UserError("Name the file for the answers: --out answers.jsonl.")
    _check(max_new, 0.0)
    if batch_size < 1:
        raise UserError(f"--batch-size must be at least 1, not {batch_size}.")
    check_directory(masks)
    if not file.is_file():
        raise UserError(f"There is no file of questions '{file}'.")
    if out.is_dir():
        raise UserError(f"{out} is a directory; name the file for the answers, such as {out / 'answers.jsonl'}.")
    check_directory(out.parent)
    from earthmind_jax.infer.predictor import EarthMind

    console = Console(stderr=True)
    model = EarthMind.load(checkpoint)
    requests = read_requests(file, model, skip_broken=skip_broken)
    options = {"maps": masks, "batch_size": batch_size, "max_new": max_new, "skip_broken": skip_broken}
    done = run(model, requests, out, **options, console=console)
    if as_json:
        print(json.dumps(done, indent=2))
        return
    rate = done["answers"] / done["seconds"] if done["seconds"] else 0.0
    print(
        f"wrote {out}: {done['answers']} answers in {done['seconds']:.1f} s ({rate:.2f}/s), {done['kept']} were there "
        f"before, {done['broken']} broken lines"
    )


def _refuse_with_batch(**given: Any) -> None:
    for name, value in given.items():
        if value:
            raise UserError(f"--batch takes its questions and images from the file; leave out '{name}'.")


def _check(max_new: int, temperature: float) -> None:
    if max_new < 1:
        raise UserError(f"--max-new must be at least 1, not {max_new}.")
    if not 0 <= temperature < float("inf"):
        raise UserError(f"--temperature must be 0 or more, not {temperature}.")
