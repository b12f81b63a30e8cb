"""The keys of a policy file: what the loader accepts, the schema says and the manual page lists."""

from ..model.policy import InUse, NoIommu, OthersInGroup
from . import scalars
from .kinds import Choice, ListOf, OneOrMore
from .tables import Key, Named, Table

SETTINGS = (
    Key(
        "load_timeout",
        scalars.DURATION,
        "How long the module of one driver may take to load; then the next one is tried. A duration"
        " is written"
        " as 500ms, 10s, 1m30s or 1h, which is the longest.",
        default="10s",
    ),
    Key(
        "bind_timeout",
        scalars.DURATION,
        "How long the kernel may take to unbind and bind.",
        default="30s",
    ),
    Key(
        "group",
        Choice({str(each): each for each in OthersInGroup}),
        "What to do when others in the device's IOMMU group are not on VFIO: refuse; switch them together; or"
        " ignore it, although the group can't be used then. One that is to have another flavour, by a wish or"
        " by a rule, is not switched with it.",
        default="refuse",
    ),
    Key(
        "in_use",
        Choice({str(each): each for each in InUse}),
        "What to do with a device that the host or a guest uses: refuse, or force the switch.",
        default="refuse",
    ),
    Key(
        "noiommu",
        Choice({str(each): each for each in NoIommu}),
        "What to do with a device that no IOMMU isolates: refuse, or allow it although it can write to all of"
        " the host's memory then.",
        default="refuse",
    ),
    Key(
        "deny",
        OneOrMore(scalars.MODULE),
        "Modules that are never to be used. A rule's are added to those of the defaults.",
    ),
)

MATCH = Table(
    "a match",
    (
        Key(
            "address",
            OneOrMore(scalars.ADDRESS),
            "Its address, with the domain or without. When cards are added addresses can change:"
            " with vendor and"
            " device beside it, another card that gets the address is left alone.",
        ),
        Key(
            "slot",
            OneOrMore(scalars.SLOT),
            "Where it is plugged in, as flavourctl show prints it: the device numbers on the way"
            " from the root"
            " bus, such as 0000:00:1c.0/00.0. What is behind that matches, too; a bridge itself is"
            " never given to VFIO. Bus numbers, which change when a bridge is added, are not in it.",
        ),
        Key("vendor", OneOrMore(scalars.ID), "The vendor's ID, always hexadecimal: 0x15b3 or 15b3."),
        Key("device", OneOrMore(scalars.ID), "The device's ID, hexadecimal; needs vendor."),
        Key("subsystem_vendor", OneOrMore(scalars.ID), "The subsystem vendor's ID, hexadecimal."),
        Key(
            "subsystem_device",
            OneOrMore(scalars.ID),
            "The subsystem's ID, hexadecimal; needs subsystem_vendor.",
        ),
        Key(
            "class",
            OneOrMore(scalars.CLASS),
            "The first two, four or six digits of its class as lspci -n has it: 03 is any display"
            " controller, 0300"
            " a VGA one.",
        ),
        Key(
            "modalias",
            OneOrMore(scalars.MODALIAS),
            "A glob for its modalias as the kernel writes it, case and all; '*' is every device.",
        ),
        Key(
            "driver",
            OneOrMore(scalars.DRIVER),
            "The driver that it has when the rules are looked at; none for none. What a rule is applied to "
            "is its own also when it has another driver because of that.",
        ),
        Key("iommu_group", OneOrMore(scalars.IOMMU_GROUP), "The number of its IOMMU group."),
        Key(
            "sriov",
            Choice({"pf": "pf", "vf": "vf"}),
            "pf: it can have virtual functions; vf: it is one.",
        ),
        Key(
            "pf",
            OneOrMore(scalars.ADDRESS),
            "The address of the physical function whose virtual function it is.",
        ),
        Key(
            "serial",
            OneOrMore(scalars.SERIAL),
            "Its serial number, in either case: what an NVMe drive tells while the driver nvme has"
            " it, or the PCI"
            " capability that lspci -v calls Device Serial Number, which Linux shows from 6.18 on.",
        ),
        Key("host", OneOrMore(scalars.HOST), "A glob for the host's name, with its domain or without."),
    ),
    needs={"device": "vendor", "subsystem_device": "subsystem_vendor"},
    when_empty="to match every device write modalias: '*'",
)

NODES = Table(
    "nodes",
    (
        Key("owner", scalars.ACCOUNT, "The user who owns them, by name or number."),
        Key("group", scalars.ACCOUNT, "Their group, by name or number."),
        Key("mode", scalars.MODE, "Their mode, octal."),
    ),
)

FLAVOUR = Table(
    "a flavour",
    (
        Key(
            "alias_prefix",
            scalars.ALIAS_PREFIX,
            "What the aliases of its modules begin with, as vfio_pci does; none when there are none. No two"
            " flavours can have one.",
            required=True,
        ),
        Key(
            "fallback",
            scalars.MODULE,
            "The module of its generic driver, of no other flavour.",
            required=True,
        ),
    ),
)

PERSONALITY = Table(
    "a personality",
    (
        Key("driver", scalars.DRIVER, "The PCI driver that has it. It is never unbound.", required=True),
        Key(
            "attribute",
            scalars.ATTRIBUTE,
            "The attribute that is written to, below the device's directory in sysfs.",
            required=True,
        ),
        Key("on", scalars.WRITTEN, "What is written to it to make it a VFIO device.", default="1"),
        Key("off", scalars.WRITTEN, "What is written to it to take that back.", default="0"),
        Key(
            "ready",
            scalars.ATTRIBUTE,
            "What is there, and if a directory not empty, when it is one.",
            default="vfio-dev",
        ),
    ),
)

RULE = Table(
    "a rule",
    (
        Key("name", scalars.NAME, "What people see. No two rules have the same, in any file.", required=True),
        Key("match", MATCH, "Which devices: all that is given must fit, of a list any.", required=True),
        Key(
            "flavour",
            scalars.FLAVOUR,
            "What they shall be: native, vfio or a flavour of your own. Without it the rule only"
            " says how, and the"
            " device stays what it is until someone asks.",
        ),
        Key(
            "driver",
            OneOrMore(scalars.DRIVER),
            "The driver or module to use: auto for the best one, a name, or names in the order to"
            " try, after which"
            " the flavour's generic driver comes. None can be named for native.",
            default="auto",
        ),
        *(Key(key.name, key.kind, key.doc) for key in SETTINGS),
        Key(
            "nodes",
            NODES,
            "Who may open their VFIO nodes in /dev, and so controls the devices. Without it they"
            " stay as the kernel"
            " makes them, for root.",
        ),
    ),
)

METRICS = Table(
    "metrics",
    (
        Key(
            "file",
            scalars.METRICS_FILE,
            "Where they are written for the node exporter's textfile collector, which Debian has look in"
            " /var/lib/prometheus/node-exporter. For another directory the service needs a ReadWritePaths=.",
            required=True,
        ),
    ),
)

FILE = Table(
    "a policy",
    (
        Key("version", Choice({"1": 1}), "The version of this format, 1, in each file.", required=True),
        Key(
            "defaults",
            Table("defaults", SETTINGS),
            "What holds where a rule says nothing. Of a key in more than one file the last one counts.",
        ),
        Key(
            "flavours",
            Named(scalars.OWN_FLAVOUR, FLAVOUR),
            "Flavours of your own besides native and vfio, by name.",
        ),
        Key(
            "personalities",
            ListOf(PERSONALITY),
            "Drivers that become VFIO drivers by an attribute of their own. The attribute enable_vfio is"
            " built in and comes first.",
        ),
        Key(
            "metrics",
            METRICS,
            "Has metrics for Prometheus written to a file; without it there are none. Where several of the"
            " policy's files have this key, the last one counts.",
        ),
        Key("rules", ListOf(RULE), "The first one that matches a device decides, and no other is looked at."),
    ),
)
