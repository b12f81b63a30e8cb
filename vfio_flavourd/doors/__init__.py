"""The ways in: varlink, the driver_flavour file system, uevents."""
