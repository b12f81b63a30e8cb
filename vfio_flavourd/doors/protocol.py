"""What both clients of the control API know without the varlink library: where it is, and its errors."""

import errno

from ..model.errors import FlavourError, InvalidPolicyError

NAME = "io.vfioflavour.Manager"
CONTROL_SOCKET = f"/run/vfio-flavourd/{NAME}"
READ_ONLY_SOCKET = f"{CONTROL_SOCKET}.ReadOnly"


class NotRunningError(FlavourError):
    """Nobody answers at the socket."""


def parse_error(name: str, parameters: dict[str, object]) -> FlavourError:
    """What a client makes of an error reply."""
    message, hint = parameters.get("message"), parameters.get("hint")
    number, code = parameters.get("errno"), parameters.get("code")
    kind = InvalidPolicyError if name == f"{NAME}.InvalidPolicy" else FlavourError
    return kind(
        message if isinstance(message, str) else f"the daemon answered {name} {parameters or ''}".rstrip(),
        errno=number if isinstance(number, int) else errno.EIO,
        hint=hint if isinstance(hint, str) else "",
        code=code if isinstance(code, str) else "failed",
    )


def no_connection(path: str, error: OSError) -> FlavourError:
    if isinstance(error, PermissionError):
        return FlavourError(
            "switching a device is for root and the members of the group vfio-flavour",
            errno=errno.EACCES,
            hint="use sudo, or have yourself added to the group",
        )
    return NotRunningError(
        f"the daemon can't be reached at {path}: {error.strerror or error}",
        errno=errno.EIO,
        hint="systemctl start vfio-flavourd.socket vfio-flavourd.service",
    )


def lost(why: object) -> NotRunningError:
    """In the middle of a call."""
    return NotRunningError(
        f"the daemon went away in the middle of the call: {why}",
        errno=errno.EIO,
        hint="flavourctl list shows what the devices are now; journalctl -u vfio-flavourd",
    )
