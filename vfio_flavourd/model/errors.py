"""The one error root."""


class FlavourError(Exception):
    """Something asked for could not be done.

    The text is one line, lower-case, and says what was being done to what. `errno` is what a file
    system door returns for it; `code` is the stable name of what went wrong; `hint` is what to do next,
    or empty. `touched` says that a device was written to before it failed.
    """

    def __init__(self, message: str, *, errno: int, hint: str = "", code: str = "failed") -> None:
        super().__init__(message)
        self.errno = errno
        self.code = code
        self.hint = hint
        self.touched = False


class InvalidPolicyError(FlavourError):
    """The policy's files say something that can't be, or can't be trusted; the text says what and where."""
