"""PCI devices changing hands between the host and VFIO."""

__version__ = "0.2.0"
