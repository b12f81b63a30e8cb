"""compile-policy: compiles the policy before udev looks for drivers, when it is not what it was.

No daemon, no socket and no udevd is there yet. udevd starts after this, so nothing has to be told to it.
"""

import logging
import os
from pathlib import Path

from . import journal
from .config.load import load_policy
from .engine.early_rules import Occasion, update_rules
from .kernel.early_rules import read_sources
from .kernel.index import ModuleIndex
from .kernel.occupancy import Occupancy
from .kernel.sysfs import Sysfs
from .model.errors import FlavourError, InvalidPolicyError
from .model.message_ids import MessageId, log_fields

_log = logging.getLogger(__name__)

# EX_CONFIG of sysexits.h, and the manager's own word for a unit that failed by its configuration.
INVALID_POLICY = 78


def main(root: Path = Path("/"), *, owner: int = 0) -> int:
    """The exit status. The rules stay as they are where the policy is invalid; the boot goes on anyway."""
    journal.open_log()
    release, host_name = os.uname().release, os.uname().nodename
    below = str(root).rstrip("/")
    try:
        sources = read_sources(root, release)
        update = update_rules(
            root,
            load_policy(root, owner=owner).policy,
            sources,
            sysfs=Sysfs(below),
            table=ModuleIndex(root, release).table(),
            find_users=Occupancy(below).find_users,
            host_name=host_name,
            occasion=Occasion.BEFORE_UDEV,
        )
    except InvalidPolicyError as error:
        _log.error(
            "%s: the rules for early boot stay as they are",
            error,
            extra=log_fields(MessageId.EARLY_RULES_OLD),
        )
        return INVALID_POLICY
    except FlavourError as error:
        _log.error("%s: %s", error, error.hint, extra=log_fields(MessageId.EARLY_RULES_OLD))
        return 1
    for note in update.notes:
        _log.warning("%s", note)
    _log.info(
        "the rules for early boot %s", "follow the policy now" if update.changed else "are as they were"
    )
    return 0
