"""The codes of what can go wrong: stable names, short enough to be said on the phone.

Each has its errno and its exit status here and nowhere else; `explanations` has the words.
"""

import errno
from enum import StrEnum


class Code(StrEnum):
    """What went wrong, told apart by what one does next. Never renamed: other programs compare them."""

    NO_SUCH_DEVICE = "no-such-device"
    DEVICE_GONE = "device-gone"
    NOT_AN_ADDRESS = "not-an-address"
    NO_SUCH_FLAVOUR = "no-such-flavour"
    INVALID_ARGUMENT = "invalid-argument"
    NOTHING_FOUND = "nothing-found"
    DRIVER_STAYS_BOUND = "driver-stays-bound"
    IN_USE = "in-use"
    NEEDED_BY_HOST = "needed-by-host"
    USERS_UNKNOWN = "users-unknown"
    IS_A_BRIDGE = "is-a-bridge"
    GROUP_NOT_VIABLE = "group-not-viable"
    GROUP_BUSY = "group-busy"
    TOO_MANY_REQUESTS = "too-many-requests"
    NO_IOMMU = "no-iommu"
    STUCK = "stuck"
    TIMED_OUT = "timed-out"
    NO_CANDIDATE = "no-candidate"
    MODULE_NOT_LOADED = "module-not-loaded"
    NO_DRIVER_TOOK_IT = "no-driver-took-it"
    WRITE_REFUSED = "write-refused"
    STILL_NOT_NATIVE = "still-not-native"
    CHANGED_BY_SOMEONE_ELSE = "changed-by-someone-else"
    NOT_PUT_BACK = "not-put-back"
    NOT_SAVED = "not-saved"
    NOT_PERMITTED = "not-permitted"
    DAEMON_NOT_RUNNING = "daemon-not-running"
    DAEMON_WENT_AWAY = "daemon-went-away"
    INVALID_POLICY = "invalid-policy"
    INTERRUPTED = "interrupted"
    FELL_BACK = "fell-back"
    FAILED = "failed"


# What a driver or the kernel answers to a write; any other errno becomes EIO, with the story in the text.
FROM_THE_KERNEL = (errno.EIO, errno.EBUSY, errno.ETIMEDOUT, errno.EAGAIN, errno.EACCES)

# The usual one first, which a code has unless another is handed on; none where it is no error.
ERRNOS: dict[Code, tuple[int, ...]] = {
    Code.NO_SUCH_DEVICE: (errno.ENODEV,),
    Code.DEVICE_GONE: (errno.ENODEV,),
    Code.NOT_AN_ADDRESS: (errno.EINVAL,),
    Code.NO_SUCH_FLAVOUR: (errno.EINVAL,),
    Code.INVALID_ARGUMENT: (errno.EINVAL,),
    Code.NOTHING_FOUND: (errno.ENOENT,),
    Code.DRIVER_STAYS_BOUND: (errno.EINVAL, errno.EIO),
    Code.IN_USE: (errno.EBUSY,),
    Code.NEEDED_BY_HOST: (errno.EBUSY,),
    Code.USERS_UNKNOWN: (errno.EIO,),
    Code.IS_A_BRIDGE: (errno.EBUSY,),
    Code.GROUP_NOT_VIABLE: (errno.EBUSY,),
    Code.GROUP_BUSY: (errno.EAGAIN,),
    Code.TOO_MANY_REQUESTS: (errno.EAGAIN,),
    Code.NO_IOMMU: (errno.EIO,),
    Code.STUCK: (errno.EBUSY, errno.ETIMEDOUT),
    Code.TIMED_OUT: (errno.ETIMEDOUT,),
    Code.NO_CANDIDATE: (errno.EIO,),
    Code.MODULE_NOT_LOADED: (errno.EIO, errno.ETIMEDOUT),
    Code.NO_DRIVER_TOOK_IT: FROM_THE_KERNEL,
    Code.WRITE_REFUSED: FROM_THE_KERNEL,
    Code.STILL_NOT_NATIVE: (errno.EIO,),
    Code.CHANGED_BY_SOMEONE_ELSE: (errno.EBUSY, errno.EAGAIN),
    Code.NOT_PUT_BACK: FROM_THE_KERNEL,
    Code.NOT_SAVED: (errno.EIO,),
    Code.NOT_PERMITTED: (errno.EACCES,),
    Code.DAEMON_NOT_RUNNING: (errno.EIO,),
    Code.DAEMON_WENT_AWAY: (errno.EIO, errno.EINTR),
    Code.INVALID_POLICY: (errno.EINVAL,),
    Code.INTERRUPTED: (errno.EINTR,),
    Code.FELL_BACK: (),
    Code.FAILED: (errno.EIO,),
}

_BY_ERRNO = {
    errno.EINVAL: 2,
    errno.ENODEV: 3,
    errno.EBUSY: 75,
    errno.EAGAIN: 75,
    errno.ETIMEDOUT: 75,
    errno.EACCES: 77,
    errno.EINTR: 130,
}
_BY_CODE: dict[str, int] = {
    Code.FELL_BACK: 4,
    Code.DAEMON_NOT_RUNNING: 69,
    Code.DAEMON_WENT_AWAY: 69,
    Code.INVALID_POLICY: 78,
}


def find_exit_status(code: str, number: int) -> int:
    """flavourctl's; `number` is the errno. A code that isn't known is one of a newer daemon."""
    return _BY_CODE.get(code) or _BY_ERRNO.get(number, 1)


def find_exit_statuses(code: Code) -> tuple[int, ...]:
    """All that a code can lead to, the usual one first."""
    numbers = ERRNOS[code] or (0,)
    return tuple(dict.fromkeys(find_exit_status(code, number) for number in numbers))
