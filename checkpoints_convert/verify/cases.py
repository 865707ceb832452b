"""A recorded case through this code."""

from __future__ import annotations

from pathlib import Path

import jax

from checkpoints_convert.verify.recorded import RUNNERS, Case, Report, kind
from checkpoints_convert.verify.result import Result
from earthmind_jax.errors import UserError


def against_recorded(directory: str | Path) -> Result:
    """Run the case in ``directory`` (its name says what it records) and compare every output.

    Raises:
      UserError: it is no case, or of a kind that is not known.
    """
    case = Case(Path(directory).absolute())
    missing = [name for name in ("config.json", "inputs.npz", "outputs.npz") if not (case.path / name).is_file()]
    if missing:
        raise UserError(f"'{directory}' is no recorded case: it lacks {', '.join(missing)}.")
    found = kind(case.name)
    if found not in RUNNERS:
        raise UserError(f"'{directory}' is of no kind that can be run; known names begin with {', '.join(RUNNERS)}.")
    report = Report(case)
    with jax.default_matmul_precision("highest"):
        RUNNERS[found](case, report)
    problems = report.problems()
    return Result(case.name, not problems, "\n".join([report.table(), *(f"  {problem}" for problem in problems)]))
