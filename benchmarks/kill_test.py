"""Kill a training run many times at random moments (starting, stepping, saving) and compare with one left alone.

``python benchmarks/kill_test.py --kills 20`` prints one JSON line, and fails at the first bit that differs. A run that
is killed goes on in the same directory until it ends; then it is compared and the next one begins.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]


def main() -> None:
    import killing
    from interrupted import RUN, STEPS

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance, started, kills, runs, left = random.Random(options.seed), time.perf_counter(), [], 0, 0
    with tempfile.TemporaryDirectory() as place:
        whole, cache = Path(place) / "whole", Path(place) / "cache"
        killing.run(whole, cache)
        start = time.perf_counter()
        killing.run(Path(place) / "again", cache)
        length = time.perf_counter() - start
        killing.same(whole, Path(place) / "again")
        while len(kills) < options.kills:
            directory, runs = Path(place) / f"killed_{runs}", runs + 1
            while len(kills) < options.kills:
                kind, step = chance.choice(("time", "step", "saving", "saving")), chance.randint(1, STEPS)
                if kind == "time":
                    moment = killing.Moment(None, chance.uniform(0, length))
                else:
                    step -= step % RUN.checkpoint_every if kind == "saving" and step > 1 else 0
                    moment = killing.Moment(f"{kind} {step}", chance.uniform(0, 0.4))
                if not killing.run(directory, cache, moment):
                    break
                kills.append(kind)
                left += bool(killing.unfinished(directory))
                print(f"{len(kills)}: {moment}, left unfinished: {killing.unfinished(directory)}", file=sys.stderr)
            killing.run(directory, cache)
            killing.same(whole, directory)
    facts = {
        "kills": len(kills),
        "while": {kind: kills.count(kind) for kind in sorted(set(kills))},
        "runs compared": runs,
        "partial saves left and removed": left,
        "seconds": round(time.perf_counter() - started),
    }
    print(json.dumps({"benchmark": "kill_test", **facts, "identical": True}))


if __name__ == "__main__":
    main()
