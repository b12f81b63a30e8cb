"""Text from outside, where people read it."""


def printable(text: str) -> str:
    """What comes from outside must not move a terminal's cursor, nor make two lines of one."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
