"""A file that is there as a whole or not at all, also after a power cut or on a full disk."""

import os
from pathlib import Path


def write_whole_file(path: Path, text: str) -> None:
    """Aside, synced, renamed, and the directory synced: what was there before stays until then.

    Raises OSError.
    """
    aside = path.with_suffix(".new")
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
