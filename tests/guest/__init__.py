"""A Debian guest with a virtual IOMMU, its test drivers, and the tests that run in it."""
