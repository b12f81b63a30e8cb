"""Many VFs at once: by policy, against a shell loop that does the same to one after the other."""

from collections.abc import Mapping

from tests.guest.devices import ROLES
from tests.guest.vm import Guest

from . import guest as rig
from .measure import Row, Scale, run_rounds

PF = ROLES["nvme_pf"]
POLICY = "/etc/vfio-flavourd/policy.d/90-bench.yaml"
RULE = f"version: 1\\nrules:\\n  - {{ name: VFs, match: {{ sriov: vf, pf: {PF.bdf} }}, flavour: vfio }}\\n"
BY_POLICY, LOOP = "by policy", "raw writes in a loop"
AIM = 0.6


def measure(guest: Guest, scale: Scale) -> list[Row]:
    count = scale.vfs
    make = f"echo {count} > {PF.sysfs}/sriov_numvfs"
    wait = f"until [ $(ls -d {PF.sysfs}/virtfn*/vfio-dev 2> /dev/null | wc -l) = {count} ]; do :; done"
    loop = (
        f"for vf in {PF.sysfs}/virtfn*; do echo vfio-pci > $vf/driver_override;"
        " device=$(readlink $vf); echo ${device##*/} > /sys/bus/pci/drivers/vfio-pci/bind; done"
    )
    remove = f"echo 0 > {PF.sysfs}/sriov_numvfs; udevadm settle"

    def by_policy() -> Mapping[str, float]:
        said = rig.run(
            guest,
            f"""
            mkdir -p $(dirname {POLICY}); printf '{RULE}' > {POLICY}; flavourctl reload > /dev/null
            take() {{ {make}; {wait}; }}
            lap take
            {remove}
            rm {POLICY}; flavourctl reload > /dev/null
            """,
        )
        return {"": int(said[0]) / 1e6}

    def by_loop() -> Mapping[str, float]:
        return {"": int(rig.run(guest, f"take() {{ {make}; {loop}; {wait}; }}; lap take; {remove}")[0]) / 1e6}

    autoprobe = f"{PF.sysfs}/sriov_drivers_autoprobe"
    guest.run(f"modprobe vfio-pci; echo 0 > {autoprobe}")
    try:
        samples = run_rounds({BY_POLICY: by_policy, LOOP: by_loop}, scale.slow_rounds, warm_up=False)
    finally:
        guest.run(f"echo 1 > {autoprobe}; rm -f {POLICY}")
    rig.unload(guest)
    return [Row(f"{count} VFs to vfio", "s", BY_POLICY, samples[""], {LOOP: AIM})]
