// SPDX-License-Identifier: GPL-2.0-only
/*
 * A native driver (for QEMU's edu) that can give its device a VFIO personality
 * without being unbound: writing 1 to the device's `enable_vfio` registers a
 * VFIO device on the same pci_dev, 0 unregisters it. NVIDIA's vGPU driver has
 * this shape under another name, `nvidia/current_vgpu_type`.
 *
 * udev loads this module at boot. The part that needs vfio_pci_core is a module
 * apart, vft_native_vfio, loaded by the first write of 1: no VFIO module is
 * there before somebody asks for VFIO.
 */
#include <linux/kmod.h>
#include <linux/kstrtox.h>
#include <linux/mutex.h>
#include <linux/sysfs.h>

#include "vft_native.h"

/* One for all devices: nothing here is worth a lock of its own. */
static DEFINE_MUTEX(lock);
static const struct vft_personality *personality;

void vft_native_set_personality(const struct vft_personality *new)
{
	mutex_lock(&lock);
	personality = new;
	mutex_unlock(&lock);
}
EXPORT_SYMBOL_GPL(vft_native_set_personality);

/* vfio_pci_core wants drvdata for itself: set means enabled. */
static bool enabled(struct pci_dev *pdev)
{
	return pci_get_drvdata(pdev) != NULL;
}

static int enable(struct pci_dev *pdev)
{
	int ret;

	if (!personality || !try_module_get(personality->owner))
		return -EOPNOTSUPP;
	ret = personality->enable(pdev);
	if (ret)
		module_put(personality->owner);
	return ret;
}

static void disable(struct pci_dev *pdev)
{
	personality->disable(pdev);
	module_put(personality->owner);
}

static ssize_t enable_vfio_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%d\n", enabled(to_pci_dev(dev)));
}

static ssize_t enable_vfio_store(struct device *dev, struct device_attribute *attr,
				 const char *buf, size_t count)
{
	struct pci_dev *pdev = to_pci_dev(dev);
	bool wanted;
	int ret;

	ret = kstrtobool(buf, &wanted);
	if (ret)
		return ret;
	/* Not under the lock, which the module's init takes. */
	if (wanted)
		request_module("vft_native_vfio");

	mutex_lock(&lock);
	if (wanted == enabled(pdev))
		ret = 0;
	else if (wanted)
		ret = enable(pdev);
	/* An open that comes right after this look makes disable() wait for
	 * it, as every VFIO driver's unbind does. */
	else if (personality->in_use(pdev))
		ret = -EBUSY;
	else
		disable(pdev);
	mutex_unlock(&lock);
	return ret ?: count;
}
static DEVICE_ATTR_RW(enable_vfio);

static struct attribute *vft_native_attrs[] = {
	&dev_attr_enable_vfio.attr,
	NULL
};
ATTRIBUTE_GROUPS(vft_native);

static int vft_native_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	return pci_enable_device(pdev);
}

/* The driver core has removed `enable_vfio` by then, and waited for its writer. */
static void vft_native_remove(struct pci_dev *pdev)
{
	if (enabled(pdev))
		disable(pdev);
	pci_disable_device(pdev);
}

static const struct pci_device_id vft_native_ids[] = {
	{ PCI_DEVICE(0x1234, 0x11e8) },
	{ }
};
MODULE_DEVICE_TABLE(pci, vft_native_ids);

static struct pci_driver vft_native_driver = {
	.name			= "vft-native",
	.id_table		= vft_native_ids,
	.probe			= vft_native_probe,
	.remove			= vft_native_remove,
	.dev_groups		= vft_native_groups,
	/* A native driver holds its group's DMA ownership for as long as it
	 * is bound, so a VFIO user could never open the group. edu's own DMA
	 * is not used here: there is nothing to own. */
	.driver_managed_dma	= true,
};
module_pci_driver(vft_native_driver);

MODULE_DESCRIPTION("native driver with a VFIO personality");
MODULE_LICENSE("GPL");
