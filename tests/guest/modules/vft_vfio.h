/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The part that every variant driver repeats: a vfio_device_ops which hands
 * everything to vfio_pci_core, and a probe and remove around it.
 */
#ifndef VFT_VFIO_H
#define VFT_VFIO_H

#include <linux/err.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/version.h>
#include <linux/vfio_pci_core.h>

static int vft_open_device(struct vfio_device *core_vdev)
{
	struct vfio_pci_core_device *vdev =
		container_of(core_vdev, struct vfio_pci_core_device, vdev);
	int ret = vfio_pci_core_enable(vdev);

	if (ret)
		return ret;
	vfio_pci_core_finish_enable(vdev);
	return 0;
}

static const struct vfio_device_ops vft_ops = {
	.name		= KBUILD_MODNAME,
	.init		= vfio_pci_core_init_dev,
	.release	= vfio_pci_core_release_dev,
	.open_device	= vft_open_device,
	.close_device	= vfio_pci_core_close_device,
	.ioctl		= vfio_pci_core_ioctl,
	.device_feature	= vfio_pci_core_ioctl_feature,
	.read		= vfio_pci_core_read,
	.write		= vfio_pci_core_write,
	.mmap		= vfio_pci_core_mmap,
	.request	= vfio_pci_core_request,
	.match		= vfio_pci_core_match,
	/* From 6.2 on, registration refuses ops without all of these when
	 * CONFIG_IOMMUFD is on; without it they are NULL. */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 2, 0)
	.bind_iommufd	= vfio_iommufd_physical_bind,
	.unbind_iommufd	= vfio_iommufd_physical_unbind,
	.attach_ioas	= vfio_iommufd_physical_attach_ioas,
#endif
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 6, 0)
	.detach_ioas	= vfio_iommufd_physical_detach_ioas,
#endif
};

static inline int vft_register(struct pci_dev *pdev)
{
	struct vfio_pci_core_device *vdev;
	int ret;

	vdev = vfio_alloc_device(vfio_pci_core_device, vdev, &pdev->dev, &vft_ops);
	if (IS_ERR(vdev))
		return PTR_ERR(vdev);

	/* vfio_pci_core_register_device() WARNs and fails unless drvdata is
	 * the core device already. */
	dev_set_drvdata(&pdev->dev, vdev);
	ret = vfio_pci_core_register_device(vdev);
	if (ret) {
		dev_set_drvdata(&pdev->dev, NULL);
		vfio_put_device(&vdev->vdev);
	}
	return ret;
}

/* Waits, uninterruptibly in part, for whoever has the device open. */
static inline void vft_unregister(struct pci_dev *pdev)
{
	struct vfio_pci_core_device *vdev = dev_get_drvdata(&pdev->dev);

	vfio_pci_core_unregister_device(vdev);
	dev_set_drvdata(&pdev->dev, NULL);
	vfio_put_device(&vdev->vdev);
}

#endif
