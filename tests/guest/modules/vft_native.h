/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef VFT_NATIVE_H
#define VFT_NATIVE_H

#include <linux/module.h>
#include <linux/pci.h>

/* What vft_native_vfio does for vft_native; called one at a time. */
struct vft_personality {
	struct module *owner;
	int (*enable)(struct pci_dev *pdev);
	bool (*in_use)(struct pci_dev *pdev);
	void (*disable)(struct pci_dev *pdev);
};

/* NULL takes it back. */
void vft_native_set_personality(const struct vft_personality *personality);

#endif
