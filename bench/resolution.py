"""What it costs to find the modules for a device, warm and cold.

The trees are made up, in the shape of a distribution's, and indexed by depmod. Their files are in the page
cache, as they are for anybody who asks twice.
"""

import ctypes
import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from test_resolution_kmod import make_tree

from vfio_flavourd.kernel.index import ModuleIndex, read_alias_table

from .measure import MICROSECONDS, MILLISECONDS, Row, Scale, Side, run_rounds, timed

DEVICE = "pci:v000015B3d0000101Esv000015B3sd00000010bc02sc00i00"
FLAVOURED = DEVICE.replace("pci:", "vfio_pci:")
WINNER = "mlx5_vfio_pci"
VARIANTS = {
    "vfio_pci": ["v*d*sv*sd*bc*sc*i*"],
    "mlx5_vfio_pci": ["v000015B3d0000101Esv*sd*bc*sc*i*"],
    "hisi_acc_vfio_pci": [f"v000019E5d0000A25{digit}sv*sd*bc*sc*i*" for digit in "169"],
    "pds_vfio_pci": ["v00001DD8d00001003sv*sd*bc*sc*i*"],
    "virtio_vfio_pci": ["v00001AF4d00001041sv*sd*bc*sc*i*"],
    "nvgrace_gpu_vfio_pci": [
        f"v000010DEd0000{device}sv*sd*bc*sc*i*" for device in ("2342", "2345", "2348", "2941")
    ],
    "qat_vfio_pci": [f"v00008086d0000494{digit}sv*sd*bc*sc*i*" for digit in "135"],
}
OURS, LIBKMOD, MODPROBE, SCAN = "the daemon", "libkmod", "modprobe -R", "a full scan in C"
WHERE_PROGRAMS_ARE = f"{os.environ['PATH']}:/usr/sbin:/sbin"


def measure(scale: Scale) -> list[Row]:
    rows = []
    for number, lines in enumerate(scale.aliases):
        with tempfile.TemporaryDirectory() as temporary:
            tree = Tree(Path(temporary), lines, scale.modules)
            if number == 0:
                rows += _measure_warm(tree, scale)
            rows.append(_measure_cold(tree, scale, lines))
    return rows


class Tree:
    """A made up distribution's modules below `root`, and its modprobe.d."""

    def __init__(self, root: Path, lines: int, modules: int) -> None:
        self.root = root
        self.modules_dir: Path = make_tree(root, _make_modules(lines, modules))
        self.conf = root / "etc/modprobe.d"
        self.conf.mkdir(parents=True)
        for number in range(4):
            (self.conf / f"{number}.conf").write_text("options x y=1\nblacklist pcspkr\n# comment\n")
        time.sleep(0.1)  # stamps younger than that are not trusted

    def read(self) -> None:
        assert read_alias_table(self.modules_dir, [self.conf], "quiet").resolve(DEVICE).winner == WINNER

    def ask_modprobe(self) -> None:
        command = [
            "modprobe",
            "-R",
            "-C",
            str(self.conf),
            "-d",
            str(self.root),
            "-S",
            self.modules_dir.name,
            FLAVOURED,
        ]
        environment = {**os.environ, "PATH": WHERE_PROGRAMS_ARE}
        said = subprocess.run(command, check=True, env=environment, capture_output=True, text=True).stdout
        assert WINNER in said.split(), said


def _measure_warm(tree: Tree, scale: Scale) -> list[Row]:
    index = ModuleIndex(tree.root, tree.modules_dir.name)
    table = index.table()
    assert table.resolve(DEVICE).winner == WINNER
    assert index.table() is table
    kmod = LibKmod(tree)

    def look_again() -> None:
        kmod.validate()
        kmod.look_up()

    def measured(sides: Mapping[str, Side]) -> Mapping[str, list[float]]:
        return run_rounds(sides, scale.rounds, warm_up=scale.warm_up)[""]

    loaded = {f"module{number}" for number in range(150)} | {"vfio_pci"}
    repeat = scale.repeat
    look_up = {
        OURS: timed(lambda: table.resolve(DEVICE, loaded=loaded), MICROSECONDS, repeat),
        LIBKMOD: timed(kmod.look_up, MICROSECONDS, repeat),
    }
    checked = {
        OURS: timed(lambda: index.table().resolve(DEVICE, loaded=loaded), MICROSECONDS, repeat),
        LIBKMOD: timed(look_again, MICROSECONDS, repeat),
    }
    return [
        Row("warm look-up", "µs", OURS, measured(look_up), {LIBKMOD: 1.0}),
        Row(
            "the same, first seeing whether a file has changed", "µs", OURS, measured(checked), {LIBKMOD: 1.0}
        ),
    ]


def _measure_cold(tree: Tree, scale: Scale, lines: int) -> Row:
    rounds = scale.rounds if lines < 100_000 else max(scale.rounds // 5, 1)
    kmod = LibKmod(tree)
    sides: dict[str, Side] = {
        OURS: timed(tree.read),
        MODPROBE: timed(tree.ask_modprobe),
        LIBKMOD: timed(kmod.look_up_anew),
    }
    with _full_scan(tree) as scan:
        if scan is not None:
            sides[SCAN] = scan
        samples = run_rounds(sides, rounds, warm_up=scale.warm_up)[""]
    return Row(f"cold, {lines:,} lines", "ms", OURS, samples, {MODPROBE: 0.3, SCAN: 0.3})


def _make_aliases(count: int) -> Iterator[str]:
    """Of other prefixes, in about the proportions a distribution's kernel has them."""
    dice = random.Random(1)  # the same each time
    for _ in range(count):
        vendor, device = dice.randrange(0x10000), dice.randrange(0x10000)
        kind = dice.random()
        if kind < 0.35:
            yield f"pci:v{vendor:08X}d{device:08X}sv*sd*bc*sc*i*"
        elif kind < 0.8:
            yield f"usb:v{vendor:04X}p{device:04X}d*dc*dsc*dp*ic*isc*ip*in*"
        else:
            yield f"of:N*T*Cvendor{vendor:x},device{device:x}C*"


def _make_modules(lines: int, count: int) -> Iterable[tuple[str, list[str]]]:
    modules = [(name, [f"vfio_pci:{alias}" for alias in aliases]) for name, aliases in VARIANTS.items()]
    aliases = list(_make_aliases(lines - sum(len(aliases) for _, aliases in modules)))
    others = count - len(modules)
    modules += [(f"driver{number}", aliases[number::others]) for number in range(others)]
    random.Random(2).shuffle(modules)
    return modules


class LibKmod:
    """kmod_module_new_from_lookup() by ctypes, the way a Python program would have it."""

    def __init__(self, tree: Tree) -> None:
        self._library = ctypes.CDLL("libkmod.so.2")
        self._tree = str(tree.modules_dir).encode()
        self._conf = (ctypes.c_char_p * 2)(str(tree.conf).encode(), None)
        for name in ("kmod_new", "kmod_unref"):
            getattr(self._library, name).restype = ctypes.c_void_p
        self._library.kmod_new.argtypes = (ctypes.c_char_p, ctypes.c_void_p)
        for name in (
            "kmod_unref",
            "kmod_load_resources",
            "kmod_validate_resources",
            "kmod_module_unref_list",
        ):
            getattr(self._library, name).argtypes = (ctypes.c_void_p,)
        self._library.kmod_module_new_from_lookup.argtypes = (
            *(ctypes.c_void_p, ctypes.c_char_p),
            ctypes.POINTER(ctypes.c_void_p),
        )
        self._context = self._open()
        self._alias = FLAVOURED.encode()

    def look_up(self) -> None:
        self._look_up(self._context)

    def validate(self) -> None:
        """libkmod's own look at whether its index and modprobe.d have changed."""
        assert self._library.kmod_validate_resources(self._context) == 0

    def look_up_anew(self) -> None:
        context = self._open()
        self._look_up(context)
        self._library.kmod_unref(context)

    def _open(self) -> int:
        context: int = self._library.kmod_new(self._tree, self._conf)
        self._library.kmod_load_resources(context)
        return context

    def _look_up(self, context: int) -> None:
        found = ctypes.c_void_p(None)
        status = self._library.kmod_module_new_from_lookup(context, self._alias, ctypes.byref(found))
        assert status == 0
        assert found.value
        self._library.kmod_module_unref_list(found)


@contextmanager
def _full_scan(tree: Tree) -> Iterator[Side | None]:
    """None where there is no C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as temporary:
        library = Path(temporary) / "scan.so"
        source = Path(__file__).with_name("scan.c")
        command = [compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(source)]
        subprocess.run(command, check=True)
        scan = ctypes.CDLL(str(library)).scan
        name = ctypes.create_string_buffer(64)
        index = str(tree.modules_dir / "modules.alias").encode()

        def look() -> None:
            assert scan(index, FLAVOURED.encode(), name, len(name)) == 0
            assert name.value.decode() == WINNER

        yield timed(look, MILLISECONDS)
