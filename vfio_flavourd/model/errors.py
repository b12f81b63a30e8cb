"""The one error root."""

from .codes import ERRNOS, Code


class FlavourError(Exception):
    """Something asked for could not be done.

    The text is one line, lower-case, and says what was being done to what. `code` is the stable name of what
    went wrong; `errno` is what a file system door returns for it, that of the code unless the kernel's own is
    handed on; `hint` is what to do next, or empty. `touched` says that a device was written to before it
    failed.
    """

    def __init__(
        self, message: str, *, code: str = Code.FAILED, errno: int | None = None, hint: str = ""
    ) -> None:
        super().__init__(message)
        self.code = code
        self.errno = ERRNOS[Code(code)][0] if errno is None else errno
        self.hint = hint
        self.touched = False

    @property
    def advice(self) -> str:
        """The hint, and where to read more."""
        more = f"flavourctl explain {self.code}"
        return f"{self.hint} ({more})" if self.hint else more


class InvalidPolicyError(FlavourError):
    """The policy's files say something that can't be, or can't be trusted; the text says what and where."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message, code=Code.INVALID_POLICY, hint=hint)
