"""What a resolution costs, warm and cold, against libkmod in the same run.

    python bench/resolution.py [--rounds N]

The tree is made up, in the shape of a distribution's: 27,405 aliases in 3,900 modules, indexed by
depmod. Times are medians over the rounds, with the fifth and the ninety-fifth percentile. Files are in
the page cache, as they are for anybody who asks twice.
"""

# ruff: noqa: INP001, S311, T201 - it reports by printing, and wrong answers would make it worthless

import argparse
import ctypes
import os
import random
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from vfio_flavourd.kernel.index import ModuleIndex, read_alias_table  # noqa: E402

DEVICE = "pci:v000015B3d0000101Esv000015B3sd00000010bc02sc00i00"
FLAVOURED = DEVICE.replace("pci:", "vfio_pci:")
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
ALIASES = 27_405
MODULES = 3_900


def make_aliases(count: int) -> list[str]:
    """Of other prefixes, in about the proportions a distribution's kernel has them."""
    dice = random.Random(1)
    made = []
    for _ in range(count):
        vendor, device = dice.randrange(0x10000), dice.randrange(0x10000)
        kind = dice.random()
        if kind < 0.35:
            made.append(f"pci:v{vendor:08X}d{device:08X}sv*sd*bc*sc*i*")
        elif kind < 0.8:
            made.append(f"usb:v{vendor:04X}p{device:04X}d*dc*dsc*dp*ic*isc*ip*in*")
        else:
            made.append(f"of:N*T*Cvendor{vendor:x},device{device:x}C*")
    return made


def make_modules() -> list[tuple[str, list[str]]]:
    modules = [(name, [f"vfio_pci:{alias}" for alias in aliases]) for name, aliases in VARIANTS.items()]
    aliases = make_aliases(ALIASES - sum(len(aliases) for _, aliases in modules))
    others = MODULES - len(modules)
    modules += [(f"driver{number}", aliases[number::others]) for number in range(others)]
    random.Random(2).shuffle(modules)
    return modules


class LibKmod:
    """kmod_module_new_from_lookup() by ctypes, the way a Python program would have it."""

    def __init__(self, tree: Path, conf: Path) -> None:
        self._library = ctypes.CDLL("libkmod.so.2")
        self._tree = str(tree).encode()
        self._conf = (ctypes.c_char_p * 2)(str(conf).encode(), None)
        for name in ("kmod_new", "kmod_unref"):
            getattr(self._library, name).restype = ctypes.c_void_p
        self._library.kmod_new.argtypes = (ctypes.c_char_p, ctypes.c_void_p)
        self._library.kmod_unref.argtypes = (ctypes.c_void_p,)
        self._library.kmod_load_resources.argtypes = (ctypes.c_void_p,)
        self._library.kmod_validate_resources.argtypes = (ctypes.c_void_p,)
        self._library.kmod_module_new_from_lookup.argtypes = (
            *(ctypes.c_void_p, ctypes.c_char_p),
            ctypes.POINTER(ctypes.c_void_p),
        )
        self._library.kmod_module_unref_list.argtypes = (ctypes.c_void_p,)
        self._context = self._open()
        self._alias = FLAVOURED.encode()

    def _open(self) -> int:
        context: int = self._library.kmod_new(self._tree, self._conf)
        self._library.kmod_load_resources(context)
        return context

    def warm(self) -> None:
        self._look_up(self._context)

    def validate(self) -> None:
        """libkmod's own look at whether its index and modprobe.d have changed."""
        assert self._library.kmod_validate_resources(self._context) == 0

    def cold(self) -> None:
        context = self._open()
        self._look_up(context)
        self._library.kmod_unref(context)

    def _look_up(self, context: int) -> None:
        found = ctypes.c_void_p(None)
        status = self._library.kmod_module_new_from_lookup(context, self._alias, ctypes.byref(found))
        assert status == 0
        assert found.value
        self._library.kmod_module_unref_list(found)


Figures = tuple[float, float, float]


def measure(what: Callable[[], object], rounds: int, repeat: int = 1) -> Figures:
    """Median, fifth and ninety-fifth percentile of one call, in microseconds."""
    what()
    times = []
    for _ in range(rounds):
        started = time.perf_counter_ns()
        for _ in range(repeat):
            what()
        times.append((time.perf_counter_ns() - started) / repeat / 1000)
    times.sort()
    return times[rounds // 2], times[rounds // 20], times[rounds - 1 - rounds // 20]


def show(what: str, figures: Figures, against: Figures | None = None) -> None:
    median, low, high = figures
    ratio = f"{median / against[0]:8.2f} x libkmod" if against else ""
    print(f"{what:58}{median:12.2f} us  ({low:.2f} .. {high:.2f}){ratio}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=200)
    rounds = parser.parse_args().rounds
    make_tree = runpy.run_path(str(ROOT / "tests/unit/test_resolution_kmod.py"))["make_tree"]
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        tree: Path = make_tree(root, make_modules())
        conf = root / "etc/modprobe.d"
        conf.mkdir(parents=True)
        for number in range(4):
            (conf / f"{number}.conf").write_text("options x y=1\nblacklist pcspkr\n# comment\n")
        time.sleep(0.1)  # stamps younger than that are not trusted
        index = ModuleIndex(root, tree.name)
        table = index.table()
        assert table.resolve(DEVICE).winner == "mlx5_vfio_pci"
        assert index.table() is table
        kmod = LibKmod(tree, conf)
        size = (tree / "modules.alias").stat().st_size
        print(
            f"modules.alias: {ALIASES} aliases, {size / 1e6:.1f} MB; {len(list(conf.iterdir()))} conf files"
        )

        warm = measure(kmod.warm, rounds, 200)
        show("warm: libkmod look-up by ctypes", warm)
        show("warm: resolve()", measure(lambda: table.resolve(DEVICE), rounds, 200), warm)
        loaded = {f"module{number}" for number in range(150)} | {"vfio_pci"}
        show(
            "warm: resolve(loaded=150)",
            measure(lambda: table.resolve(DEVICE, loaded=loaded), rounds, 200),
            warm,
        )
        fresh = measure(kmod.validate, rounds, 50)
        show("fresh? libkmod's kmod_validate_resources()", fresh)
        show("fresh? table()", measure(index.table, rounds, 50), fresh)
        show("warm: table().resolve()", measure(lambda: index.table().resolve(DEVICE), rounds, 50), warm)

        cold = measure(kmod.cold, rounds)
        show("cold: libkmod, a new context by ctypes", cold)
        show("cold: read, parse, resolve", measure(lambda: read(tree, conf), rounds), cold)
        command = ["modprobe", "-R", "-C", str(conf), "-d", str(root), "-S", tree.name, FLAVOURED]
        environment = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
        modprobe = measure(
            lambda: subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL),
            rounds // 4,
        )
        show("cold: a modprobe -R process", modprobe, cold)

        lines = "".join(f"alias {alias} driver\n" for alias in make_aliases(1_000_000))
        variants = "".join(
            f"alias vfio_pci:{alias} {name}\n" for name, aliases in VARIANTS.items() for alias in aliases
        )
        (tree / "modules.alias").write_text(lines + variants)
        size = (tree / "modules.alias").stat().st_size
        figures = measure(lambda: read(tree, conf), max(rounds // 10, 5))
        show(f"cold: read, parse, resolve; 1,000,000 lines, {size / 1e6:.0f} MB", figures)


def read(tree: Path, conf: Path) -> None:
    assert read_alias_table(tree, [conf], "quiet").resolve(DEVICE).winner == "mlx5_vfio_pci"


if __name__ == "__main__":
    main()
