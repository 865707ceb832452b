"""Three ways to check a conversion: against its source, against recorded outputs of PyTorch, against PyTorch itself.

``recorded`` holds what compares one recorded case, for the command and for the tests alike.
"""

from __future__ import annotations

from checkpoints_convert.verify.cases import against_recorded
from checkpoints_convert.verify.live import against_live
from checkpoints_convert.verify.result import Result
from checkpoints_convert.verify.source import against_source

__all__ = ["Result", "against_live", "against_recorded", "against_source"]
