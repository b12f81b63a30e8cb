"""The only code that touches /sys, /proc, /lib/modules, modprobe or netlink."""
