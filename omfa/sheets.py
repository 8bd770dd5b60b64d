"""Pictures to be looked at: side by side, and saved."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

LINE, RULE = 16, 9  # pixels of a caption's line and of an upright rule


def contact_sheet(
    rows: Sequence[tuple[str, Sequence[Image.Image | None]]], cell: Sequence[int] = (256, 192)
) -> Image.Image:
    """Pictures in rows on white, each scaled to fit a cell and centred; a caption above every row that has one.

    Args:
        rows: (caption or "", pictures); None among them draws an upright line, as between given and made.
        cell: (height, width) of a cell in pixels.
    """
    height, width = cell
    lines = [LINE if caption else 0 for caption, _ in rows]
    widths = [sum(RULE if p is None else width for p in pictures) for _, pictures in rows]
    size = (max(widths, default=width), sum(lines) + height * len(rows))
    sheet = Image.new("RGB", size, "white")
    pen, top = ImageDraw.Draw(sheet), 0
    for line, (caption, pictures) in zip(lines, rows, strict=True):
        if caption:
            pen.text((4, top + 2), caption, fill="black")
        at = 0
        for picture in pictures:
            if picture is None:
                pen.line([(at + RULE // 2, top + line), (at + RULE // 2, top + line + height - 1)], fill="black")
                at += RULE
                continue
            scale = min(width / picture.width, height / picture.height)
            fitted = picture.convert("RGB").resize(
                (max(1, round(picture.width * scale)), max(1, round(picture.height * scale))), Image.Resampling.LANCZOS
            )
            left, down = (width - fitted.width) // 2, (height - fitted.height) // 2
            sheet.paste(fitted, (at + left, top + line + down))
            at += width
        top += line + height
    return sheet


def save_whole(picture: Image.Image, path: str | os.PathLike[str]) -> Path:
    """Save a picture whole or not at all: written to the side, then swapped in. The suffix names the format."""
    path = Path(path)
    part = path.with_name(path.name + ".part")
    try:
        picture.save(part, format=Image.registered_extensions()[path.suffix.lower()])
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path
