"""A file that is there as a whole or not at all, also after a power cut or on a full disk."""

import os
from pathlib import Path


def write_whole_file(path: Path, text: str, *, synced: bool = True) -> None:
    """Aside, synced, renamed, and the directory synced: what was there before stays until then. What
    a power cut takes away whole, as all that is in /run, need not be `synced`.

    Raises OSError.
    """
    aside = path.with_suffix(".new")
    with aside.open("wb") as file:
        file.write(text.encode())
        file.flush()
        if synced:
            os.fsync(file.fileno())
    aside.replace(path)
    if not synced:
        return
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
