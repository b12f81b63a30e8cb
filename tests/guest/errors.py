"""What can go wrong with the rig itself."""


class RigError(Exception):
    """The rig could not do what it was asked to; the text says what, and where to look."""
