"""``kill -9`` at any moment, also while a step is saved: the resumed run is the uninterrupted one to the bit."""

from __future__ import annotations

import random

import interrupted
import killing
from killing import Moment


def test_a_killed_run_goes_on_as_if_nothing_had_been(tmp_path):
    chance = random.Random()
    moments = [
        Moment(f"step {chance.randint(1, 5)}", chance.uniform(0, 0.3)),
        Moment("saving 6", chance.uniform(0, 0.25)),
        Moment(f"step {chance.randint(8, 11)}", chance.uniform(0, 0.3)),
    ]
    print(moments)  # shown where the test fails
    whole, killed, cache = tmp_path / "whole", tmp_path / "killed", tmp_path / "cache"
    assert not killing.run(whole, cache)
    assert [line["step"] for line in killing.reports(whole)] == list(range(1, interrupted.STEPS + 1))
    for moment in moments:
        killing.run(killed, cache, moment)
    assert not killing.run(killed, cache)
    killing.same(whole, killed)
