#!/bin/bash
# Carries the compiled policy into the initramfs, with the modules that its rules load: where a native driver
# is in there, it would have its device before anything on the root file system is seen.

rules=/etc/udev/rules.d/79-vfio-flavourd-policy.rules

# 0: it belongs in; 255: only if something asks for it. Where the policy has nothing for early boot there is
# no file, or one with comments only.
check() {
    grep -q '^[^#]' "${dracutsysrootdir-}$rules" 2>/dev/null || return 255
    return 0
}

depends() {
    echo udev-rules
}

installkernel() {
    # Absent from a kernel without VFIO.
    if grep -q '"kmod load vfio_pci"' "${dracutsysrootdir-}$rules"; then
        hostonly='' instmods vfio_pci vfio_iommu_type1
    fi
}

install() {
    # Not inst_rules, which looks in /etc only for an initramfs of this very host.
    inst_simple "$rules"
}
