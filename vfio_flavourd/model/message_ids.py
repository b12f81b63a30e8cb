"""What kinds of message there are in the journal, each with its MESSAGE_ID.

The catalog (catalog/vfio-flavourd.catalog) explains each of them to `journalctl -x`. An id is a promise to
those who search the journal: it never comes to stand for something else.
"""

from enum import StrEnum

from .address import PciAddress


class MessageId(StrEnum):
    """Up to CUT_OFF those of the one record that each attempt has."""

    SWITCHED = "68be424c625546c080f419291dcc5b97"
    FELL_BACK = "42fcc6a01cb54eaf93a85053e248dd26"
    FORCED = "c068a17781b64da7a37223784ec69252"
    UNCHANGED = "fe2315804f2d4691840fdf331ec9c2cf"
    REFUSED = "70b60902874d4f4ead3570b1e329baa0"
    FAILED = "31dbc1ebd2ea4f32ae52ec16cbd73a8b"
    STUCK = "9938ea57ce91481b9eb3b46b2b714a62"
    GIVEN_UP = "058ee124ac22427c98c7b0260cccd602"
    CUT_OFF = "225d2ca53ad848a98db8909b985a9a2f"
    RELEASED = "e93324d692b14ff588cb7e92f3c3a826"
    NOT_RELEASED = "32cd3c54f37f433184c935ad9c030fae"
    RECORD_LOST = "10f30cc066c24b04b0b396cc7fee0b8c"
    CHANGED_BY_OTHERS = "d2fe44c8a63e469a9ced67f5ce35816e"
    LEFT_TO_DRIVERCTL = "5f07417890c54748b594711138379e09"
    NOT_APPLIED = "bcbc3917d9c341e4ab3ef09da5777f1f"
    HELD_BACK = "fe34c468c03e4334947821ab1afcb602"
    POLICY_IN_FORCE = "c0fbb3076936409eb005c25b68b4a4ed"
    POLICY_INVALID = "92b986daa817423483b9b1416e2db991"
    EARLY_RULES_OLD = "f7195f65401e4b57b861d36a14d7d327"
    WISH_INVALID = "3fcd77836f3f449989ee051490c217ee"
    NOT_KEPT = "64b80644c2994646a3785f64c179639b"
    NOT_PERMITTED = "5d2f0b6a4c8e4e7f9b1c3a6d8e0f2b47"
    CALL_INVALID = "e758b01feb09445bbe136a337f75ed35"
    REFUSALS_LEFT_OUT = "b09196c920504ca9bd50e2b4d429e687"
    HUNG_UP = "ebd14f4dbc204543ae8a9f23c38ae162"
    TOO_MANY_WRITES = "64f6d28515fd402d9c53f514fcf6225e"
    RELOAD_ASKED = "731e58faa90244cdaeb464a80f5a8bf1"
    EVENTS_LOST = "7e10cdba0fd44aaf8920751565595f9c"


def log_fields(message: MessageId, address: PciAddress | None = None) -> dict[str, str]:
    """For `extra=` of a log call."""
    fields = {"MESSAGE_ID": str(message)}
    if address is not None:
        fields["PCI_ADDRESS"] = str(address)
    return fields
