"""Numbers as a small picture that HTML holds: one cell a number, orange below 0, blue above, red where it is no number.

>>> picture(np.array([[0.0, 1.0], [-1.0, np.nan]]))[:32]
'<img src="data:image/png;base64,'
"""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

BELOW, NOTHING, ABOVE, BAD = ((0xC4, 0x62, 0x1A), (0xF1, 0xF3, 0xF6), (0x1F, 0x55, 0x9E), (0xC8, 0x1E, 0x1E))

MAX_ROWS, MAX_COLUMNS = 48, 160


def picture(values: npt.NDArray[Any]) -> str:
    """An image of rows and columns, of which some are left out where there are many."""
    shown = values[_spread(values.shape[0], MAX_ROWS)][:, _spread(values.shape[1], MAX_COLUMNS)].astype(np.float64)
    if not shown.size:
        return ""
    finite = np.isfinite(shown)
    most = float(np.abs(shown[finite]).max()) if finite.any() else 0.0
    share = np.where(finite, shown, 0.0) / (most or 1.0)
    colours = np.where(share[..., None] < 0, BELOW, ABOVE)
    pixels = np.array(NOTHING) + (colours - np.array(NOTHING)) * np.abs(share)[..., None]
    pixels[~finite] = BAD
    rows, columns = shown.shape
    size = max(1, min(8, 640 // columns))
    text = base64.b64encode(png(pixels.round().astype(np.uint8))).decode()
    return (
        f'<img src="data:image/png;base64,{text}" width="{columns * size}" height="{rows * size}" alt="the values" '
        'style="image-rendering:pixelated;display:block;margin:4px 0">'
    )


def png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Pixels [rows, columns, 3] as a PNG file."""
    rows, columns, _ = pixels.shape
    lines = np.zeros((rows, 1 + 3 * columns), np.uint8)  # each line begins with the number of its filter: none
    lines[:, 1:] = pixels.reshape(rows, -1)
    head = struct.pack(">IIBBBBB", columns, rows, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(lines.tobytes())), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )


def _spread(count: int, most: int) -> npt.NDArray[np.int64]:
    return np.arange(count) if count <= most else np.linspace(0, count - 1, most).astype(np.int64)
