"""Where a picture goes."""

from __future__ import annotations

import sys

from ..model.codes import Code
from ..model.errors import FlavourError

# `pathlib` takes longer to import than this module; only mypy needs it.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path


def refuse_terminal(hint: str) -> None:
    """Raises FlavourError where the picture would go to one."""
    if sys.stdout.isatty():
        raise FlavourError("a terminal can't show a picture (SVG)", code=Code.INVALID_ARGUMENT, hint=hint)


def write_picture(picture: str, file: Path | None = None) -> None:
    """Raises FlavourError."""
    if file is None:
        # Whatever the locale is: that is what the picture says of itself.
        sys.stdout.buffer.write(picture.encode())
        return
    try:
        file.write_text(picture, encoding="utf-8")
    except OSError as error:
        raise FlavourError(
            f"the picture can't be written to {str(file)!r}: {error.strerror}",
            code=Code.INVALID_ARGUMENT,
            hint="name another file, or see whether the disk is full",
        ) from error
