// SPDX-License-Identifier: GPL-2.0-only
/*
 * A variant driver for e1000 whose module init hangs until its parameter
 * `release` is 1. Parameters are in sysfs before init runs, and
 * /sys/module/vft_hang/initstate reads "coming" meanwhile.
 *
 * msleep() sleeps uninterruptibly: the modprobe is in D state and SIGKILL does
 * not end it, which is how a load that waits for dead hardware looks.
 */
#include <linux/delay.h>

#include "vft_vfio.h"

static bool release;
module_param(release, bool, 0644);
MODULE_PARM_DESC(release, "1 lets init go on and register the driver");

static int vft_hang_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	return vft_register(pdev);
}

static const struct pci_device_id vft_hang_ids[] = {
	{ PCI_DRIVER_OVERRIDE_DEVICE_VFIO(0x8086, 0x100e) },
	{ }
};
MODULE_DEVICE_TABLE(pci, vft_hang_ids);

static struct pci_driver vft_hang_driver = {
	.name			= "vft-hang-vfio-pci",
	.id_table		= vft_hang_ids,
	.probe			= vft_hang_probe,
	.remove			= vft_unregister,
	.err_handler		= &vfio_pci_core_err_handlers,
	.driver_managed_dma	= true,
};

static int __init vft_hang_init(void)
{
	while (!READ_ONCE(release))
		msleep(50);
	return pci_register_driver(&vft_hang_driver);
}
module_init(vft_hang_init);

static void __exit vft_hang_exit(void)
{
	pci_unregister_driver(&vft_hang_driver);
}
module_exit(vft_hang_exit);

MODULE_DESCRIPTION("variant driver whose init hangs");
MODULE_LICENSE("GPL");
