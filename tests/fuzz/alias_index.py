"""depmod's index of modules.alias: what is asked for, or that it is damaged."""

from vfio_flavourd.model.alias_index import AliasIndex

_START = b"vfio_pci:"


def one(data: bytes) -> None:
    try:
        index = AliasIndex(lambda at, size: data[at : at + size])
        found = index.find(_START)
    except ValueError:
        return
    assert all(alias.startswith(_START) for alias, _ in found)
    assert all(0 not in alias + module for alias, module in found)
    try:
        every = index.find(b"")
    except ValueError:
        return  # it is damaged elsewhere
    assert [each for each in every if each[0].startswith(_START)] == found
