// SPDX-License-Identifier: GPL-2.0-only
/*
 * A variant driver whose probe always fails. For rtl8139 it is the only
 * variant, so vfio-pci is next. For vmxnet3 it names the subsystem too, which
 * makes it a more specific match than vft_second, which is next.
 */
#include "vft_vfio.h"

static int errno_value = EINVAL;
module_param(errno_value, int, 0644);
MODULE_PARM_DESC(errno_value, "the errno probe fails with, positive; 517 is EPROBE_DEFER");

static int vft_refuse_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	/* The driver core takes a probe's positive result for success. */
	int ret = errno_value > 0 ? -errno_value : -EINVAL;

	pci_info(pdev, "vft_refuse: probe fails with %d\n", ret);
	return ret;
}

static const struct pci_device_id vft_refuse_ids[] = {
	{ PCI_DRIVER_OVERRIDE_DEVICE_VFIO(0x10ec, 0x8139) },
	{ PCI_DEVICE_SUB(0x15ad, 0x07b0, 0x15ad, 0x07b0),
	  .override_only = PCI_ID_F_VFIO_DRIVER_OVERRIDE },
	{ }
};
MODULE_DEVICE_TABLE(pci, vft_refuse_ids);

static struct pci_driver vft_refuse_driver = {
	.name			= "vft-refuse-vfio-pci",
	.id_table		= vft_refuse_ids,
	.probe			= vft_refuse_probe,
	.driver_managed_dma	= true,
};
module_pci_driver(vft_refuse_driver);

MODULE_DESCRIPTION("variant driver that refuses its devices");
MODULE_LICENSE("GPL");
