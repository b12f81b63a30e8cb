"""Who may open the VFIO nodes, as the policy says it: written down for udev before a node appears."""

import logging
from collections.abc import Callable

from ..kernel.inventory import DEVICES, find_vfio_device
from ..kernel.node_access import DIRECTORY, announce, write_node_files
from ..model.address import PciAddress
from ..model.device import Device
from ..model.flavour import Flavour
from ..model.node_access import render_node_files
from ..model.policy import Decision
from .host import Host

_log = logging.getLogger(__name__)


class Nodes:
    """`is_coming` tells of a device whether a switch to VFIO is under way. There may be several at one time,
    in as many IOMMU groups, and each one's node is to find its file."""

    def __init__(
        self, host: Host, decide: Callable[[Device], Decision], is_coming: Callable[[PciAddress], bool]
    ) -> None:
        self._host = host
        self._decide = decide
        self._is_coming = is_coming

    def take_back(self, address: PciAddress) -> None:
        """Where VFIO has a device no more, so that the next one in its IOMMU group does not find its file."""
        is_written = (self._host.state / DIRECTORY / str(address)).exists()
        if is_written and find_vfio_device(self._host.sysfs, f"{DEVICES}/{address}") is None:
            self.update()

    def update(self) -> None:
        """For what VFIO has, and for what it is about to get. Costs nothing where no rule says any."""
        directory = self._host.state / DIRECTORY
        if not directory.exists() and not any(rule.nodes for rule in self._host.policy.policy.rules):
            return
        # What is stuck or was cut off has a worker that may go on to VFIO by itself.
        late = {
            record.address
            for record in self._host.ledger.all()
            if record.is_open and record.flavour == Flavour.VFIO
        }
        rendered = render_node_files(
            (device.address, device.iommu_group, self._decide(device).nodes)
            for device in self._host.read_devices()
            if device.vfio_device is not None or device.address in late or self._is_coming(device.address)
        )
        for note in rendered.notes:
            _log.warning("%s", note)
        try:
            announce(self._host.sysfs, write_node_files(directory, rendered.files))
        except OSError as error:
            _log.error(
                "telling udev who may open the VFIO nodes failed (%s): they stay root's", error.strerror
            )
