"""The file system that offers driver_flavour, use_vfio and last_error for each PCI device."""
