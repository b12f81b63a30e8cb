// SPDX-License-Identifier: GPL-2.0-only
/*
 * A variant driver that works, for e1000e. Its driver is called
 * "vft-good-vfio-pci" and its module "vft_good": whoever takes the one for
 * the other writes a driver_override that nothing matches.
 */
#include <linux/delay.h>

#include "vft_vfio.h"

static unsigned int probe_delay_ms;
module_param(probe_delay_ms, uint, 0644);
MODULE_PARM_DESC(probe_delay_ms, "how long probe sleeps, so that something can happen meanwhile");

static int vft_good_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	if (probe_delay_ms)
		msleep(probe_delay_ms);
	return vft_register(pdev);
}

static const struct pci_device_id vft_good_ids[] = {
	{ PCI_DRIVER_OVERRIDE_DEVICE_VFIO(0x8086, 0x10d3) },
	{ }
};
MODULE_DEVICE_TABLE(pci, vft_good_ids);

static struct pci_driver vft_good_driver = {
	.name			= "vft-good-vfio-pci",
	.id_table		= vft_good_ids,
	.probe			= vft_good_probe,
	.remove			= vft_unregister,
	.err_handler		= &vfio_pci_core_err_handlers,
	/* Without it the driver core takes the group's DMA ownership for the
	 * kernel at bind, and opening the VFIO group says EBUSY. */
	.driver_managed_dma	= true,
};
module_pci_driver(vft_good_driver);

MODULE_DESCRIPTION("variant driver that works");
MODULE_LICENSE("GPL");
