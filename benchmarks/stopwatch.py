"""Run a training stage as ``python -m`` does, and note where its time goes.

    python -m benchmarks.stopwatch NOTE STAGE METHOD SHOTS SEED

NOTE is the JSON file to write: ``started`` and ``ended``, when the interpreter was ready and when
the stage was done, and ``parts``, the seconds of each part by name. The product has no stopwatch:
here functions of it are wrapped.
"""

from __future__ import annotations

import functools
import importlib
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STARTED = time.time()

# the part to which a call of a function counts, less what is wrapped in it
FUNCTIONS = {
    "pipeline.check.load": "checks",
    "pipeline.check.check_models": "checks",
    "pipeline.tasks.classification.runs.load": "reading",
    "pipeline.workspace.kept_encoders": "reading",
    "pipeline.workspace.fit": "training",
    "pipeline.workspace.write_run": "writing",
    "pipeline.tracking.live.Live.__enter__": "tracking",
    "pipeline.tracking.live.Live.__exit__": "tracking",
}


class Stopwatch:
    """Seconds by part; a part within another counts to itself alone."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        """Start with no part; ``clock`` gives seconds."""
        self.seconds: Counter[str] = Counter()
        self._clock = clock
        self._inner = [0.0]  # for each open part, what was spent in parts within it

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time within to a part."""
        started = self._clock()
        self._inner.append(0.0)
        try:
            yield
        finally:
            taken = self._clock() - started
            self.seconds[name] += taken - self._inner.pop()
            self._inner[-1] += taken

    def wrap(self, function: str, part: str) -> None:
        """Count calls of a function, named by module, perhaps class, and name, to a part."""
        owner, name = _find(function)
        original = getattr(owner, name)

        @functools.wraps(original)
        def timed(*given: Any, **named: Any) -> Any:
            with self.part(part):
                return original(*given, **named)

        setattr(owner, name, timed)


def _find(function: str) -> tuple[Any, str]:
    """What holds a function, and its name there."""
    path, _, name = function.rpartition(".")
    try:
        return importlib.import_module(path), name
    except ModuleNotFoundError:
        module, _, kind = path.rpartition(".")
        return getattr(importlib.import_module(module), kind), name


def main() -> None:
    """Run the stage that the command line names."""
    note, stage = Path(sys.argv[1]), sys.argv[2]
    sys.argv[1:] = sys.argv[3:]
    watch = Stopwatch()
    with watch.part("import of torch"):
        importlib.import_module("torch")
    with watch.part("other imports"):
        module = importlib.import_module(f"pipeline.stages.{stage}")
    for function, part in FUNCTIONS.items():
        watch.wrap(function, part)
    with watch.part("all else"):
        module.common.main_run(getattr(module, stage))
    told = {"started": STARTED, "ended": time.time(), "parts": watch.seconds}
    note.write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main()
