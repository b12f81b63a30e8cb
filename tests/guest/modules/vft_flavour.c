// SPDX-License-Identifier: GPL-2.0-only
/*
 * Sends the uevent which a kernel with a `driver_flavour` attribute would send:
 *
 *   echo "0000:01:00.0 vfio" > /sys/module/vft_flavour/parameters/send
 *
 * A synthetic uevent can't stand in for it: its keys arrive as SYNTH_ARG_<key>.
 *
 * A driver can only put variables before those of the bus, whose callback adds
 * MODALIAS=pci:… to every uevent of a PCI device. So the message on the wire has
 * two of them, the flavoured one first; udevd, udevadm and libudev keep the last
 * of a name and show MODALIAS=pci:… alone (seen with systemd 252 and 257).
 *
 * A kernel with the attribute could instead have its bus send the flavoured one.
 * With `override_modalias` it comes after the bus's, so udev's readers see it.
 */
#include <linux/kobject.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/string.h>
#include <linux/version.h>

static bool override_modalias;
module_param(override_modalias, bool, 0644);
MODULE_PARM_DESC(override_modalias, "put MODALIAS=vfio_pci:… after the bus's own, not before");

static char modalias_var[96];
static struct device_type flavoured_type;

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 3, 0)
static int add_modalias(const struct device *dev, struct kobj_uevent_env *env)
#else
static int add_modalias(struct device *dev, struct kobj_uevent_env *env)
#endif
{
	return add_uevent_var(env, "%s", modalias_var);
}

/* Of a device's uevent callbacks its type's is called last; PCI's type has none. */
static int send_with_type(struct pci_dev *pdev, char *envp[])
{
	const struct device_type *type = pdev->dev.type;
	int ret;

	flavoured_type = *type;
	flavoured_type.uevent = add_modalias;
	device_lock(&pdev->dev);
	pdev->dev.type = &flavoured_type;
	ret = kobject_uevent_env(&pdev->dev.kobj, KOBJ_CHANGE, envp);
	pdev->dev.type = type;
	device_unlock(&pdev->dev);
	return ret;
}

/* Module parameters are written one at a time, so the static buffers do. */
static int send_flavour(const char *val, const struct kernel_param *kp)
{
	char flavour_var[64], flavour[32];
	char *envp[] = { flavour_var, NULL, NULL };
	unsigned int domain, bus, slot, func;
	struct pci_dev *pdev;
	bool vfio;
	int ret;

	if (sscanf(val, "%x:%x:%x.%x %31s", &domain, &bus, &slot, &func, flavour) != 5)
		return -EINVAL;
	pdev = pci_get_domain_bus_and_slot(domain, bus, PCI_DEVFN(slot, func));
	if (!pdev)
		return -ENODEV;

	snprintf(flavour_var, sizeof(flavour_var), "DRIVER_FLAVOUR=%s", flavour);
	snprintf(modalias_var, sizeof(modalias_var),
		 "MODALIAS=vfio_pci:v%08Xd%08Xsv%08Xsd%08Xbc%02Xsc%02Xi%02X",
		 pdev->vendor, pdev->device, pdev->subsystem_vendor, pdev->subsystem_device,
		 (u8)(pdev->class >> 16), (u8)(pdev->class >> 8), (u8)pdev->class);

	vfio = !strcmp(flavour, "vfio");
	if (vfio && override_modalias) {
		ret = send_with_type(pdev, envp);
	} else {
		if (vfio)
			envp[1] = modalias_var;
		ret = kobject_uevent_env(&pdev->dev.kobj, KOBJ_CHANGE, envp);
	}
	pci_dev_put(pdev);
	return ret;
}

static const struct kernel_param_ops send_ops = { .set = send_flavour };
module_param_cb(send, &send_ops, NULL, 0200);
MODULE_PARM_DESC(send, "\"<BDF> <flavour>\": send the uevent for it");

MODULE_DESCRIPTION("sends driver_flavour uevents");
MODULE_LICENSE("GPL");
