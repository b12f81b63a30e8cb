// SPDX-License-Identifier: GPL-2.0-only
/*
 * A native driver (for QEMU's pci-testdev) whose remove can hang: the write to
 * its `unbind` then sleeps in D state, holding the device's lock, until
 * `release` is 1 or `hold_ms` is over.
 */
#include <linux/delay.h>
#include <linux/jiffies.h>
#include <linux/module.h>
#include <linux/pci.h>

static unsigned int hold_ms;
module_param(hold_ms, uint, 0644);
MODULE_PARM_DESC(hold_ms, "how long remove hangs at most; 0, the default: not at all");

static bool release;
module_param(release, bool, 0644);
MODULE_PARM_DESC(release, "1 lets a hanging remove go on");

static int vft_stuck_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	return pci_enable_device(pdev);
}

static void vft_stuck_remove(struct pci_dev *pdev)
{
	unsigned long end = jiffies + msecs_to_jiffies(READ_ONCE(hold_ms));

	while (!READ_ONCE(release) && time_before(jiffies, end))
		msleep(20);
	pci_disable_device(pdev);
}

static const struct pci_device_id vft_stuck_ids[] = {
	{ PCI_DEVICE(0x1b36, 0x0005) },
	{ }
};
MODULE_DEVICE_TABLE(pci, vft_stuck_ids);

static struct pci_driver vft_stuck_driver = {
	.name		= "vft-stuck",
	.id_table	= vft_stuck_ids,
	.probe		= vft_stuck_probe,
	.remove		= vft_stuck_remove,
};
module_pci_driver(vft_stuck_driver);

MODULE_DESCRIPTION("native driver whose remove hangs");
MODULE_LICENSE("GPL");
