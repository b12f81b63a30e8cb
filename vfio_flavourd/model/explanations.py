"""What each code means, why it happens and what to do: for people, in words."""

from typing import NamedTuple

from .codes import Code


class Explanation(NamedTuple):
    """`summary` is a clause; each of `causes` and `remedies` stands alone, as a sentence or a command."""

    summary: str
    causes: tuple[str, ...]
    remedies: tuple[str, ...]


# In the order of a switch: what was asked for, what stands in its way, what can fail, who answers.
EXPLANATIONS: dict[Code, Explanation] = {
    Code.NO_SUCH_DEVICE: Explanation(
        "there is no PCI device at this address",
        (
            "The address has a typo, or the device was unplugged.",
            "Bus numbers changed when a card or a bridge was added.",
            "A virtual function is gone because its PF was reset or sriov_numvfs was set to 0.",
        ),
        (
            "Look the address up: flavourctl list, or lspci -D.",
            "In a policy, match by slot, serial or vendor and device, which outlive a change of bus numbers.",
        ),
    ),
    Code.DEVICE_GONE: Explanation(
        "the device went away while it was being read or switched",
        (
            "It was unplugged, or its power was cut.",
            "Its virtual functions were disabled, or it was removed through sysfs and found anew.",
        ),
        (
            "See what happened: journalctl -k -b.",
            "When the device is back it is a new one: switch it again, or let the policy do it.",
        ),
    ),
    Code.NOT_AN_ADDRESS: Explanation(
        "what was given as a device is not a PCI address",
        ("A name, a vendor:device pair or an incomplete address was given.",),
        ("Use the address as lspci -D prints it: 0000:01:00.0, or 01:00.0 in domain 0000.",),
    ),
    Code.NO_SUCH_FLAVOUR: Explanation(
        "no flavour has this name",
        (
            "The name has a typo.",
            "The flavour is defined in a policy that is not in force: it was not reloaded, or is invalid.",
        ),
        (
            "native and vfio always exist; flavourctl cat-config shows those of the policy.",
            "After a change to the policy: flavourctl check, then flavourctl reload.",
        ),
    ),
    Code.INVALID_ARGUMENT: Explanation(
        "an argument is not what it has to be",
        ("A driver's name, a modalias, an error code or an option's value has a typo.",),
        ("The second line of the message says what is allowed; so does flavourctl VERB --help.",),
    ),
    Code.NOTHING_FOUND: Explanation(
        "there is nothing of what was asked for",
        (
            "plot: no switch with this number, or of this device, is remembered from this boot.",
            "import: driverctl has saved nothing, or modprobe.d claims nothing for vfio-pci.",
        ),
        (
            "flavourctl history lists the switches that are remembered.",
            "ls /etc/driverctl.d and grep -r vfio /etc/modprobe.d show what there is to import.",
        ),
    ),
    Code.DRIVER_STAYS_BOUND: Explanation(
        "the device's driver turns it into a VFIO device itself, and is never unbound",
        (
            "What was asked for would unbind a driver that has an attribute for that, such as enable_vfio.",
            "A driver made the device a VFIO device, and no attribute is known to take that back.",
        ),
        (
            "Ask for vfio or native, and name no driver.",
            "If the driver has such an attribute, describe it under `personalities` in the policy.",
        ),
    ),
    Code.IN_USE: Explanation(
        "the host or a guest is using the device, so it was not taken away",
        (
            "A file system, an IP address, a route, a display or a program uses it; the message says which.",
            "A guest or another program has its VFIO device open.",
            "It is a PF with virtual functions enabled, which VFIO refuses.",
        ),
        (
            "Stop the use: shut the guest down, unmount, take the address away, disable the VFs.",
            "To take it away regardless: --force (root), or `in_use: force` in the policy.",
            "A PF with virtual functions is not even taken so: echo 0 to its sriov_numvfs first.",
        ),
    ),
    Code.NEEDED_BY_HOST: Explanation(
        "the host could not go on without the device, so not even --force takes it",
        ("The root file system, or something else that the host runs from, is on it.",),
        ("Move what is on it to another device first.", "Check the address: is it the device you mean?"),
    ),
    Code.USERS_UNKNOWN: Explanation(
        "nobody could look who uses the device",
        (
            "The daemon may not look into other users' processes, and has vfio-flavour-users@.service do it.",
            "Its socket is not there, or it did not answer.",
            "A device that may be in use is not switched, not even by force.",
        ),
        (
            "systemctl start vfio-flavour-users.socket.",
            "journalctl -u 'vfio-flavour-users@*' shows why it ended.",
        ),
    ),
    Code.IS_A_BRIDGE: Explanation(
        "the device is a bridge, and bridges stay with the host",
        ("A bridge was named, or a rule of the policy matches one.",),
        (
            "Switch the devices behind it.",
            "Only a driver other than pcieport and pci-stub keeps its group from guests: flavourctl groups.",
        ),
    ),
    Code.GROUP_NOT_VIABLE: Explanation(
        "no guest could use the device: others in its IOMMU group have host drivers",
        (
            "The IOMMU can't isolate the devices of a group from each other, so VFIO wants all or none.",
            "The functions of one card, or all that is behind a bridge without ACS, share a group.",
        ),
        (
            "flavourctl groups shows what is in each group, what is in the way, and what it takes.",
            "Switch the whole group: --group together, or `group: together` in the policy.",
            "Put the card into another slot, one with a root port of its own.",
        ),
    ),
    Code.GROUP_BUSY: Explanation(
        "another switch in the same IOMMU group did not finish in time",
        ("Switches in one IOMMU group are made one at a time, and the one before is slow or stuck.",),
        ("flavourctl list shows which device that is.", "Try again when it is done."),
    ),
    Code.TOO_MANY_REQUESTS: Explanation(
        "too many writes or connections of yours, or of all users, are in use",
        (
            "A write to driver_flavour or use_vfio waits until the device has the flavour.",
            "Of one user 16 writes wait at most, 32 of all users but root, and 500 of root.",
            "Of reads 32 of one user other than root are under way at most.",
            "flavourctl, as any client, has a connection to the daemon until its call has ended.",
            "To switch one user has 50, all but root 100, and root 100 more; to look 128, 300 and 100.",
        ),
        (
            "Try again when some have returned; flavourctl list shows which devices they wait for.",
            "What watches without end, as flavourctl monitor does, keeps its connection: see ss -xp.",
        ),
    ),
    Code.NO_IOMMU: Explanation(
        "no IOMMU isolates the device, so it is not given to VFIO",
        (
            "VT-d or AMD-Vi is switched off in the firmware.",
            "The kernel was started without intel_iommu=on, or with iommu=off.",
            "The machine has no IOMMU, or a virtual machine was given none.",
        ),
        (
            "Switch it on in the firmware, add intel_iommu=on to the kernel command line (Intel), reboot.",
            "Or `noiommu: allow` in the policy: the guest can then write to all of the host's memory.",
        ),
    ),
    Code.STUCK: Explanation(
        "the kernel has not come back from a write to this device",
        (
            "A guest or another program holds the device, and the unbind waits until it lets go.",
            "The driver waits for the hardware, or has a bug.",
        ),
        (
            "flavourctl show DEV says who holds it; when that lets go, the switch is finished or undone.",
            "Look at journalctl -k for a hung task or an oops. If nothing lets go, only a reboot helps.",
            "Other devices, except those in its IOMMU group, can be switched meanwhile.",
        ),
    ),
    Code.TIMED_OUT: Explanation(
        "the time limit ran out",
        (
            "--timeout was too short, or loading a module took long.",
            "A driver accepted what was asked of it, and then nothing happened.",
        ),
        (
            "Try again with a longer --timeout, or raise load_timeout or bind_timeout in the policy.",
            "flavourctl show DEV lists the steps and how long each took.",
        ),
    ),
    Code.NO_CANDIDATE: Explanation(
        "every driver that could serve the device is rejected, so none was tried",
        (
            "The modules are blacklisted in modprobe.d or on the kernel command line.",
            "The policy denies them.",
            "Their files are missing: the kernel's package was updated or is installed in part.",
        ),
        (
            "flavourctl show DEV says for each candidate why it is rejected, and by what.",
            "Remove the line it names; after a change to the modules, run depmod, then flavourctl reload.",
        ),
    ),
    Code.MODULE_NOT_LOADED: Explanation(
        "a kernel module could not be loaded",
        (
            "It is not signed, and Secure Boot or lockdown refuses it.",
            "It was built for another kernel, or its file is missing.",
            "Its init function hangs, for instance while it loads firmware.",
        ),
        ("Load it by hand to see the error: modprobe -v MODULE.", "Look at the end of dmesg."),
    ),
    Code.NO_DRIVER_TOOK_IT: Explanation(
        "drivers were tried, and none took the device",
        (
            "The driver's probe failed: it does not support this device, its firmware or its state.",
            "vfio-pci refuses a PF with virtual functions enabled, and a device it can't reset.",
        ),
        (
            "dmesg says what the driver had to say; flavourctl show DEV lists the attempts.",
            "flavourctl show DEV lists the candidates; --driver D tries another one.",
        ),
    ),
    Code.WRITE_REFUSED: Explanation(
        "the kernel refused a write to the device's files in sysfs",
        (
            "The driver did not let go, or refused to change.",
            "Kernel lockdown, or a security module, forbids it.",
        ),
        (
            "Look at the end of dmesg, and at the failed step in flavourctl show DEV.",
            "If it was left in between: flavourctl reset DEV.",
        ),
    ),
    Code.STILL_NOT_NATIVE: Explanation(
        "the kernel gave the device to a VFIO driver again when it was to be native",
        ("vfio-pci claims its IDs: `options vfio-pci ids=` in modprobe.d, or vfio-pci.ids= at boot.",),
        (
            "Remove the IDs there, rebuild the initramfs (update-initramfs -u on Debian), and reboot.",
            "Claim the device with a rule of the policy instead.",
        ),
    ),
    Code.CHANGED_BY_SOMEONE_ELSE: Explanation(
        "something else changed the device, or asked for another flavour, at the same time",
        (
            "driverctl, libvirt (managed='yes'), a udev rule or a script bound a driver to it.",
            "Somebody asked for another flavour while the policy was being applied.",
        ),
        (
            "Find out who it was, and let only one of them manage the device.",
            "flavourctl show DEV says what it has now; flavourctl reset DEV applies the policy again.",
        ),
    ),
    Code.NOT_PUT_BACK: Explanation(
        "the switch failed, and the device could not be put back as it was",
        ("The previous driver did not take the device again, or its module can't be loaded any more.",),
        (
            "flavourctl reset DEV tries again to put it back.",
            "If that fails too: dmesg, then a reset of the device or a reboot.",
        ),
    ),
    Code.NOT_SAVED: Explanation(
        "what has to outlive a crash or a reboot could not be written to disk",
        ("/run, /var/lib/vfio-flavourd or /etc is full or read-only.",),
        ("df -h /run /var/lib /etc, and mount, show which: make space, then try again.",),
    ),
    Code.NOT_PERMITTED: Explanation(
        "you may look, but not do this",
        (
            "Only root and the members of the group vfio-flavour may switch devices.",
            "Only root may use --force and --persist, or reload the policy.",
        ),
        (
            "Use sudo, or join the group and log in again: sudo usermod -aG vfio-flavour $USER.",
            "Think before adding somebody: members can take any device that the host is not using.",
        ),
    ),
    Code.DAEMON_NOT_RUNNING: Explanation(
        "vfio-flavourd does not answer",
        ("It is stopped, masked or has failed.",),
        (
            "systemctl status vfio-flavourd.socket vfio-flavourd.service",
            "systemctl start vfio-flavourd.socket vfio-flavourd.service",
            "doctor, check, cat-config, resolve, import and explain work without it.",
        ),
    ),
    Code.DAEMON_WENT_AWAY: Explanation(
        "vfio-flavourd stopped before it answered",
        ("It was stopped, restarted or killed meanwhile.",),
        (
            "The next daemon finishes or undoes a switch that had begun: see flavourctl show DEV.",
            "journalctl -u vfio-flavourd says why it stopped.",
        ),
    ),
    Code.INVALID_POLICY: Explanation(
        "the policy's files are invalid or can't be trusted; the policy in force stays",
        (
            "A file has a mistake; the message names the line and the column.",
            "A file or directory does not belong to root, or others can write to it.",
        ),
        ("flavourctl check shows every mistake and its place.", "Then: flavourctl reload."),
    ),
    Code.INTERRUPTED: Explanation(
        "whoever asked gave up before the switch was done",
        ("Ctrl-C, a signal, or a connection that was closed.",),
        (
            "If nothing had been touched yet, nothing was; else the switch is carried to its end.",
            "flavourctl show DEV says what became of it.",
        ),
    ),
    Code.FELL_BACK: Explanation(
        "no error: the device has the flavour, but by the generic driver instead of a better one",
        ("Every better candidate is rejected, could not be loaded, or refused the device.",),
        (
            "flavourctl show DEV says why; without --strict this is a success.",
            "When the cause is mended: flavourctl set DEV native, then flavourctl set DEV vfio.",
        ),
    ),
    Code.FAILED: Explanation(
        "something failed that has no code of its own",
        ("A file in sysfs could not be read, or a worker process was killed.",),
        (
            "The message has the whole story; journalctl -u vfio-flavourd and dmesg have what led to it.",
            "If it looks like a bug, report it with those and with flavourctl show DEV --json.",
        ),
    ),
}
