"""A modalias, and a flavour's prefix after a NUL."""

from vfio_flavourd.model.errors import FlavourError
from vfio_flavourd.model.modalias import flavoured, parse_modalias, specificity

from .said import check_error


def one(data: bytes) -> None:
    text, _, prefix = data.decode("utf-8", "surrogateescape").partition("\0")
    assert all(0 <= rank <= 2 for rank in specificity(text))
    try:
        parsed = parse_modalias(text)
        assert parse_modalias(f"{parsed.text}\n") == parsed
        assert int(parsed.vendor, 16) < 2**32
        turned = flavoured(text, prefix)
    except FlavourError as error:
        check_error(error)
        return
    assert turned.isascii()
    assert turned.startswith(f"{prefix.replace('-', '_')}:")
    assert flavoured(turned, prefix) == turned
