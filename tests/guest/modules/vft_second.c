// SPDX-License-Identifier: GPL-2.0-only
/*
 * A variant driver that works, for vmxnet3 by vendor and device alone: the
 * second choice after vft_refuse, and before vfio-pci.
 */
#include "vft_vfio.h"

static int vft_second_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	return vft_register(pdev);
}

static const struct pci_device_id vft_second_ids[] = {
	{ PCI_DRIVER_OVERRIDE_DEVICE_VFIO(0x15ad, 0x07b0) },
	{ }
};
MODULE_DEVICE_TABLE(pci, vft_second_ids);

static struct pci_driver vft_second_driver = {
	.name			= "vft-second",
	.id_table		= vft_second_ids,
	.probe			= vft_second_probe,
	.remove			= vft_unregister,
	.err_handler		= &vfio_pci_core_err_handlers,
	.driver_managed_dma	= true,
};
module_pci_driver(vft_second_driver);

MODULE_DESCRIPTION("variant driver that is the second choice");
MODULE_LICENSE("GPL");
