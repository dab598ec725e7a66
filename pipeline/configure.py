"""Put a file of ``configs/`` in place as params.yaml: ``python -m pipeline.configure NAME``."""

from __future__ import annotations

import sys
from itertools import count, takewhile
from pathlib import Path

from pipeline import check
from pipeline.errors import InputError, command
from pipeline.params import PARAMS_FILE, nearest
from pipeline.records import write_atomically

CONFIGS = Path("configs")


def put_in_place(name: str) -> str:
    """Check ``configs/NAME.yaml`` and make it params.yaml; the old one is kept beside it.

    Returns:
        The file's opening comment, which says what its data must look like.

    Raises:
        InputError: there is no such file, or it is wrong.
    """
    known = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
    if name not in known:
        raise InputError(f"configs: there is no '{name}'; {nearest(name, known)}")
    config, params = CONFIGS / f"{name}.yaml", Path(PARAMS_FILE)
    check.load(config, files=False)
    text = config.read_text(encoding="utf-8")
    if params.exists() and params.read_text(encoding="utf-8") != text:
        kept = next(p for i in count(1) if not (p := Path(f"{PARAMS_FILE}.{i}")).exists())
        write_atomically(kept, params.read_bytes())
        print(f"{PARAMS_FILE} is kept as {kept}")
    write_atomically(params, text)
    comment = takewhile(lambda line: line.startswith("#"), text.splitlines())
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in comment)


def main() -> None:
    """Put the named file in place and say what it wants."""
    if len(sys.argv) != 2:
        known = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.yaml")))
        raise InputError(f"command line: say which of configs/, such as NAME=digits: {known}")
    print(put_in_place(sys.argv[1]))


if __name__ == "__main__":
    command(main)
