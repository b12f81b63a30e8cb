"""What both clients of the control API know without the varlink library: where it is, and its errors."""

import errno

from ..model.codes import Code
from ..model.errors import FlavourError

NAME = "io.vfioflavour.Manager"
CONTROL_SOCKET = f"/run/vfio-flavourd/{NAME}"
READ_ONLY_SOCKET = f"{CONTROL_SOCKET}.ReadOnly"


def parse_error(name: str, parameters: dict[str, object]) -> FlavourError:
    """What a client makes of an error reply."""
    message, hint = parameters.get("message"), parameters.get("hint")
    code, number = parameters.get("code"), parameters.get("errno")
    return FlavourError(
        message if isinstance(message, str) else f"the daemon answered {name} {parameters or ''}".rstrip(),
        code=code if isinstance(code, str) else Code.FAILED,
        errno=number if isinstance(number, int) else errno.EIO,
        hint=hint if isinstance(hint, str) else "",
    )


def no_connection(path: str, error: OSError, *, writes: bool, only_root: str = "") -> FlavourError:
    """`only_root` is what was to be asked for, where that is root's alone."""
    if isinstance(error, PermissionError) and not writes:
        return FlavourError(
            f"{path} can't be opened, which everyone may: {error.strerror}",
            code=Code.NOT_PERMITTED,
            hint="systemctl restart vfio-flavourd-readonly.socket gives it its mode back",
        )
    if isinstance(error, PermissionError) and only_root:
        return FlavourError(f"only root may {only_root}", code=Code.NOT_PERMITTED, hint="use sudo")
    if isinstance(error, PermissionError):
        return FlavourError(
            "only root and the members of the group vfio-flavour may switch devices",
            code=Code.NOT_PERMITTED,
            hint="use sudo, or have yourself added to the group",
        )
    return FlavourError(
        f"the daemon does not answer at {path}: {error.strerror or error}",
        code=Code.DAEMON_NOT_RUNNING,
        hint="start it: systemctl start vfio-flavourd.socket vfio-flavourd.service",
    )


def lost(why: object) -> FlavourError:
    """In the middle of a call."""
    if isinstance(why, OSError) and why.errno is not None:
        why = f"{why.strerror} ({errno.errorcode.get(why.errno, why.errno)})"
    return FlavourError(
        f"the daemon went away before it answered: {why}",
        code=Code.DAEMON_WENT_AWAY,
        hint="flavourctl list shows what the devices are now, journalctl -u vfio-flavourd why it went",
    )
