"""What holds of every message, whatever made it."""

import errno

from vfio_flavourd.model.errors import FlavourError


def check_error(error: FlavourError) -> None:
    """One line that a terminal takes for text, and not without an end."""
    for text in (str(error), error.advice):
        assert text.isprintable(), ascii(text)
        assert 0 < len(text) < 1000, len(text)
    assert error.errno in errno.errorcode
