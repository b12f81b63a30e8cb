"""The variant drivers that upstream has, whether the running kernel has them or not.

From their ID tables and Kconfig in drivers/vfio/pci/*/ of Linux 7.2, `since` from the history of those; a
distribution may have taken one back into an earlier kernel, or leave one out.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class UpstreamVariant:
    """`ids` are (vendor, device) pairs. With `vf_only` the IDs are the physical function's too, for which it
    does no more than vfio-pci. `since` is Linux's version."""

    module: str
    config: str
    since: tuple[int, int]
    ids: frozenset[tuple[int, int]]
    vf_only: bool = False


def _ids(vendor: int, *devices: int) -> frozenset[tuple[int, int]]:
    return frozenset((vendor, device) for device in devices)


# INTEL_BMG_IDS, INTEL_PTL_IDS and INTEL_WCL_IDS in include/drm/intel/pciids.h.
_XE = (
    *(0xE202, 0xE209, 0xE20B, 0xE20C, 0xE20D, 0xE210, 0xE211, 0xE212, 0xE216, 0xE220, 0xE221, 0xE222, 0xE223),
    *(0xB080, 0xB081, 0xB082, 0xB083, 0xB084, 0xB085, 0xB086, 0xB087, 0xB08F, 0xB090, 0xB0A0, 0xB0B0),
    *(0xFD80, 0xFD81),
)

UPSTREAM_VARIANTS = (
    UpstreamVariant("mlx5_vfio_pci", "CONFIG_MLX5_VFIO_PCI", (5, 18), _ids(0x15B3, 0x101E)),
    UpstreamVariant(
        "hisi_acc_vfio_pci", "CONFIG_HISI_ACC_VFIO_PCI", (5, 18), _ids(0x19E5, 0xA251, 0xA256, 0xA259)
    ),
    UpstreamVariant("pds_vfio_pci", "CONFIG_PDS_VFIO_PCI", (6, 6), _ids(0x1DD8, 0x1003)),
    UpstreamVariant("virtio_vfio_pci", "CONFIG_VIRTIO_VFIO_PCI", (6, 8), _ids(0x1AF4, 0x1041), vf_only=True),
    UpstreamVariant("virtio_vfio_pci", "CONFIG_VIRTIO_VFIO_PCI", (6, 15), _ids(0x1AF4, 0x1042), vf_only=True),
    UpstreamVariant(
        "nvgrace_gpu_vfio_pci", "CONFIG_NVGRACE_GPU_VFIO_PCI", (6, 9), _ids(0x10DE, 0x2342, 0x2345)
    ),
    UpstreamVariant("nvgrace_gpu_vfio_pci", "CONFIG_NVGRACE_GPU_VFIO_PCI", (6, 13), _ids(0x10DE, 0x2348)),
    UpstreamVariant("nvgrace_gpu_vfio_pci", "CONFIG_NVGRACE_GPU_VFIO_PCI", (6, 14), _ids(0x10DE, 0x2941)),
    UpstreamVariant("nvgrace_gpu_vfio_pci", "CONFIG_NVGRACE_GPU_VFIO_PCI", (6, 18), _ids(0x10DE, 0x31C2)),
    UpstreamVariant("qat_vfio_pci", "CONFIG_QAT_VFIO_PCI", (6, 10), _ids(0x8086, 0x4941, 0x4943, 0x4945)),
    UpstreamVariant("qat_vfio_pci", "CONFIG_QAT_VFIO_PCI", (6, 17), _ids(0x8086, 0x4949)),
    UpstreamVariant("qat_vfio_pci", "CONFIG_QAT_VFIO_PCI", (7, 1), _ids(0x8086, 0x4947)),
    UpstreamVariant("xe_vfio_pci", "CONFIG_XE_VFIO_PCI", (6, 19), _ids(0x8086, *_XE), vf_only=True),
    UpstreamVariant("ism_vfio_pci", "CONFIG_ISM_VFIO_PCI", (7, 1), _ids(0x1014, 0x04ED)),
)

UPSTREAM_MODULES = frozenset(variant.module for variant in UPSTREAM_VARIANTS)
