// SPDX-License-Identifier: GPL-2.0-only
/* The VFIO personality of vft_native's devices. */
#include "vft_native.h"
#include "vft_vfio.h"

static bool in_use(struct pci_dev *pdev)
{
	struct vfio_pci_core_device *vdev = pci_get_drvdata(pdev);

	return READ_ONCE(vdev->vdev.open_count) > 0;
}

static const struct vft_personality vft_native_vfio = {
	.owner		= THIS_MODULE,
	.enable		= vft_register,
	.in_use		= in_use,
	.disable	= vft_unregister,
};

static int __init vft_native_vfio_init(void)
{
	vft_native_set_personality(&vft_native_vfio);
	return 0;
}
module_init(vft_native_vfio_init);

static void __exit vft_native_vfio_exit(void)
{
	vft_native_set_personality(NULL);
}
module_exit(vft_native_vfio_exit);

MODULE_DESCRIPTION("VFIO personality of vft_native");
MODULE_LICENSE("GPL");
