"""Write the default data: scikit-learn's UCI digits as PNG files, 0 to 4 source, 5 to 9 target.

python scripts/default_data.py [FOLDER=data]
"""

from __future__ import annotations

import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt


def write(folder: Path) -> int:
    """Write ``source/<digit>/<nnnn>.png`` and ``target/<digit>/<nnnn>.png``, and count them.

    ``nnnn`` is the image's index in the dataset: E. Alpaydin and C. Kaynak, Optical Recognition
    of Handwritten Digits, UCI Machine Learning Repository, 1998 (8x8, values 0 to 16).

    Raises:
        FileExistsError: the folder holds something.
    """
    from sklearn.datasets import load_digits

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder}: is not empty; name a new folder or clear this one")
    digits = load_digits()
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    for index, (pixels, digit) in enumerate(zip(grey, digits.target, strict=True)):
        side = "source" if digit <= 4 else "target"
        path = folder / side / str(digit) / f"{index:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(pixels))
    return len(grey)


def png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """A grey PNG of (height, width) pixels: no metadata and nothing compressed, so that the same
    pixels are the same bytes with any version of any library."""
    height, width = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)  # 8 bits, grey
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)  # filter 0: as they are
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows, level=0)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, content) for kind, content in chunks)


def _chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "data")
    try:
        print(f"{target}: {write(target)} images")
    except OSError as error:
        sys.exit(f"error: {error}")
