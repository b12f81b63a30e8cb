"""reload: the daemon reads the policy and the index again."""

import argparse

from ..doors import blocking_client
from .output import print_json


def reload(arguments: argparse.Namespace) -> int:
    """Raises InvalidPolicyError when the daemon refuses the files, FlavourError when it doesn't read them."""
    with blocking_client.connect(writes=True, only_root="reload the policy") as daemon:
        daemon.call("Reload")
    if arguments.json:
        print_json({"reloaded": True})
    else:
        print("reloaded")
    return 0
