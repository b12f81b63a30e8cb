"""A pattern and, after a NUL, a text: whether they match is what fnmatch(3) of the C library says."""

import ctypes
import re

from vfio_flavourd.model.modalias import matches, normalised, specificity

# As long as an alias, so that the slowest pattern takes no time.
_LONGEST = 128

_libc = ctypes.CDLL(None)
_libc.fnmatch.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int)
_libc.newlocale.restype = _libc.uselocale.restype = ctypes.c_void_p
_libc.newlocale.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_libc.uselocale.argtypes = (ctypes.c_void_p,)

# What would begin a class; matches() says how it takes that.
_CLASS = re.compile(r"\[[:=.]")

# LC_ALL_MASK of glibc's <locale.h>. kmod never calls setlocale().
_C_LOCALE = _libc.newlocale(0x1FBF, b"C", None)


def one(data: bytes) -> None:
    raw, _, text = data.partition(b"\0")
    pattern = normalised(raw[:_LONGEST].decode("latin-1"))
    if pattern is None:
        return
    assert normalised(pattern) == pattern
    assert len(specificity(pattern)) == 7
    if _CLASS.search(pattern, pattern.find("[") + 1):
        return
    text = text.replace(b"\0", b"")[:_LONGEST]
    assert matches(pattern, text.decode("latin-1")) is _fnmatch(pattern.encode("latin-1"), text)


def _fnmatch(pattern: bytes, text: bytes) -> bool:
    before = _libc.uselocale(_C_LOCALE)
    try:
        return bool(_libc.fnmatch(pattern, text, 0) == 0)
    finally:
        _libc.uselocale(before)
