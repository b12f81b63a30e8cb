"""Who may open the VFIO nodes, as the policy says it: written down for udev before a node appears."""

import logging
from collections.abc import Collection

from ..kernel.node_access import DIRECTORY, announce, write_node_files
from ..model.device import Device
from ..model.node_access import render_node_files
from .host import Host

_log = logging.getLogger(__name__)


def update_nodes(host: Host, about_to: Collection[Device] = ()) -> None:
    """For what VFIO has, and for those that it is `about_to` get. Costs nothing where no rule says any."""
    directory = host.state / DIRECTORY
    if not directory.exists() and not any(rule.nodes for rule in host.policy.policy.rules):
        return
    addresses = {device.address for device in about_to}
    rendered = render_node_files(
        (device.address, device.iommu_group, host.decide(device).nodes)
        for device in host.read_devices()
        if device.vfio_device is not None or device.address in addresses
    )
    for note in rendered.notes:
        _log.warning("%s", note)
    try:
        announce(host.sysfs, write_node_files(directory, rendered.files))
    except OSError as error:
        _log.error("telling udev who may open the VFIO nodes failed (%s): they stay root's", error.strerror)
