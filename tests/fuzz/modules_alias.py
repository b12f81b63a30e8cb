"""A module tree's files: modules.alias; after a NUL what stands for modules.dep, modules.builtin and, with
NULs in it, modules.builtin.modinfo."""

from vfio_flavourd.model.alias_pattern import normalised
from vfio_flavourd.model.aliases import AliasTable
from vfio_flavourd.model.modprobe_conf import AliasLine
from vfio_flavourd.model.module_files import (
    ModuleFiles,
    find_builtin_aliases,
    find_index_aliases,
    find_malformed,
    find_module_path,
    is_builtin,
)

MODALIAS = "pci:v000015B3d0000101Esv000015B3sd00000010bc02sc00i00"
PREFIXES = ("vfio_pci", "pci")


def one(data: bytes) -> None:
    alias, _, rest = data.partition(b"\0")
    files = ModuleFiles("/lib/modules/6.1", lambda: alias, builtin_modinfo=rest, dep=rest, builtin=rest)
    for prefix in PREFIXES:
        assert list(find_index_aliases(files, prefix)) == _read_line_by_line(alias, prefix)
        assert list(find_builtin_aliases(files, prefix)) == _read_entry_by_entry(rest, prefix)
    lines = [line for line in alias.split(b"\n") if line.strip() and not line.strip().startswith(b"#")]
    assert find_malformed(files).count == sum(_parse(line) is None for line in lines)
    resolution = AliasTable(files).resolve(MODALIAS)
    assert resolution.candidates[-1].module == "vfio_pci"
    for candidate in resolution.candidates:
        assert candidate.module.isascii()
        path = find_module_path(files, candidate.module)
        assert path is None or path.encode("latin-1") in rest
        is_builtin(files, candidate.module)


def _read_line_by_line(alias: bytes, prefix: str) -> list[AliasLine]:
    """As slow and plain as can be."""
    parsed = [found for line in alias.split(b"\n") if (found := _parse(line)) is not None]
    return [
        AliasLine(*each, "/lib/modules/6.1/modules.alias")
        for each in parsed
        if each[0].startswith(f"{prefix}:")
    ]


def _parse(line: bytes) -> tuple[str, str] | None:
    words = line.split(b"#")[0].split()
    if len(words) < 3 or words[0] != b"alias":
        return None
    return _checked(words[1].decode("latin-1"), words[2].decode("latin-1"))


def _checked(pattern: str, module: str) -> tuple[str, str] | None:
    normal, name = normalised(pattern), module.replace("-", "_")
    allowed = all(each.isascii() and (each.isalnum() or each == "_") for each in name)
    return (normal, name) if normal and allowed and 0 < len(name) <= 64 else None


def _read_entry_by_entry(modinfo: bytes, prefix: str) -> list[AliasLine]:
    found = []
    for entry in modinfo.split(b"\0"):
        module, is_alias, pattern = entry.decode("latin-1").partition(".alias=")
        checked = _checked(pattern, module) if is_alias else None
        if checked is not None and checked[0].startswith(f"{prefix}:"):
            found.append(AliasLine(*checked, "/lib/modules/6.1/modules.builtin.modinfo"))
    return found
