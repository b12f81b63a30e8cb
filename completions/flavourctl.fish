# Completion for flavourctl; made from its parser by `make reference`.

# The verb and its arguments that stand before the cursor, without options and their values.
function __flavourctl_arguments
    set -l skip no
    for word in (commandline -opc)[2..]
        if test $skip = yes
            set skip no
        else if contains -- $word $__flavourctl_valued
            set skip yes
        else if not string match -q -- '-*' $word
            echo $word
        end
    end
end

function __flavourctl_in -a verb
    set -l arguments (__flavourctl_arguments)
    test "$arguments[1]" = "$verb"
end

# Whether the argument of the verb with this number is next; the verb itself is the first one of no verb.
function __flavourctl_at -a verb number
    set -l arguments (__flavourctl_arguments)
    if test -z "$verb"
        test (count $arguments) -eq 0
    else
        test "$arguments[1]" = "$verb" -a (count $arguments) -eq $number
    end
end

# With the domain, or where nothing begins so, without.
function __flavourctl_devices
    set -l devices (path basename /sys/bus/pci/devices/*)
    set -l typed (commandline -ct)
    string match -q -- "$typed*" $devices; or set devices (string replace -r '^0000:' '' $devices)
    for device in $devices
        set -l links (path filter -l /sys/bus/pci/devices/{,0000:}$device/driver)
        if set -q links[1]
            echo $device\t(path basename (path resolve $links[1]))
        else
            echo $device\tno driver
        end
    end
end

# By number, which only root can read, or by device.
function __flavourctl_attempts
    sed -n 's/^{"id": \([0-9]*\).*/\1/p' /run/vfio-flavourd/history.jsonl 2> /dev/null
    __flavourctl_devices
end

function __flavourctl_drivers
    echo auto
    path basename /sys/bus/pci/drivers/*
end

# The device's file names all that it can be.
function __flavourctl_flavours
    set -l device (__flavourctl_arguments)[2]
    string match -q '*:*:*' $device; or set device 0000:$device
    set -l file /run/vfio-flavour/$device/driver_flavour
    if test -r $file
        string split ' ' (string replace -ra '[\[\]]' '' < $file)
    else
        printf '%s\n' native vfio
    end
end

# A list with commas: what is being typed is its last word.
function __flavourctl_columns
    set -l before (string match -r '.*,' -- (commandline -ct))
    printf "$before%s\n" device flavour driver candidate group rule name ids class node before policy slot
end

complete -c flavourctl -f

set -g __flavourctl_valued --columns -o --output -n --number --modules-dir --modprobe-d --driver --group --timeout

complete -c flavourctl -n "__flavourctl_at '' 1" -s h -l help -d 'show this help message and exit'
complete -c flavourctl -n "__flavourctl_at '' 1" -l json -d 'print one JSON object'
complete -c flavourctl -n "__flavourctl_at '' 1" -l no-color -d 'no colours (as NO_COLOR)'
complete -c flavourctl -n "__flavourctl_at '' 1" -l version -d 'show program\'s version number and exit'
complete -c flavourctl -n "__flavourctl_at '' 1" -a list -d 'all devices (the default)'
complete -c flavourctl -n "__flavourctl_at '' 1" -a show -d 'all about one device'
complete -c flavourctl -n "__flavourctl_at '' 1" -a monitor -d 'what is being switched, as it happens, until Ctrl-C'
complete -c flavourctl -n "__flavourctl_at '' 1" -a groups -d 'the IOMMU groups: could a guest have them, and what it takes'
complete -c flavourctl -n "__flavourctl_at '' 1" -a plot -d 'a timeline of one or more switches, as a picture (SVG)'
complete -c flavourctl -n "__flavourctl_at '' 1" -a history -d 'what has been tried since the boot'
complete -c flavourctl -n "__flavourctl_at '' 1" -a resolve -d 'which drivers could serve it; needs no daemon'
complete -c flavourctl -n "__flavourctl_at '' 1" -a set -d 'give a device a flavour'
complete -c flavourctl -n "__flavourctl_at '' 1" -a reset -d 'back to what the policy says, or to what was there before'
complete -c flavourctl -n "__flavourctl_at '' 1" -a check -d 'is the policy valid, and what is wrong with it; needs no daemon'
complete -c flavourctl -n "__flavourctl_at '' 1" -a cat-config -d 'the merged policy and where it comes from; needs no daemon'
complete -c flavourctl -n "__flavourctl_at '' 1" -a reload -d 'have the daemon read the policy and the index again'
complete -c flavourctl -n "__flavourctl_at '' 1" -a doctor -d 'is this host ready, and what stands in the way; needs no daemon'
complete -c flavourctl -n "__flavourctl_at '' 1" -a import -d 'print a policy made of what driverctl or modprobe.d say; needs no daemon'
complete -c flavourctl -n "__flavourctl_at '' 1" -a explain -d 'what an error code means, and what to do; needs no daemon'

complete -c flavourctl -n "__flavourctl_in list" -s h -l help -d 'show this help message and exit'
complete -c flavourctl -n "__flavourctl_in list" -l json -d 'print one JSON object'
complete -c flavourctl -n "__flavourctl_in list" -l no-color -d 'no colours (as NO_COLOR)'
complete -c flavourctl -n "__flavourctl_in list" -l columns -xa '(__flavourctl_columns)' -d 'these columns, in this order'
complete -c flavourctl -n "__flavourctl_in list" -l noheadings -d 'no line with the columns\' names'

complete -c flavourctl -n "__flavourctl_in show" -s h -l help -d 'show this help message and exit'
complete -c flavourctl -n "__flavourctl_in show" -l json -d 'print one JSON object'
complete -c flavourctl -n "__flavourctl_in show" -l no-color -d 'no colours (as NO_COLOR)'
complete -c flavourctl -n '__flavourctl_at show 1' -xa '(__flavourctl_devices)'

complete -c flavourctl -n "__flavourctl_in monitor" -s h -l help -d 'show this help message and exit'
complete -c flavourctl -n "__flavourctl_in monitor" -l json -d 'print one JSON object'
complete -c flavourctl -n "__flavourctl_in monitor" -l no-color -d 'no colours (as NO_COLOR)'

complete -c flavourctl -n "__flavourctl_in groups" -s h -l help -d 'show this help message and exit'
complete -c flavourctl -n "__flavourctl_in groups" -l json -d 'print one JSON object'
complete -c flavourctl -n "__flavourctl_in groups" -l no-color -d 'no colours (as NO_COLOR)'
complete -c flavourctl -n "__flavourctl_in groups" -l tree -d 'as text (the default)'
complete -c flavourctl -n "__flavourctl_in groups" -l dot -d 'for Graphviz'
complete -c flavourctl -n "__flavourctl_in groups" -l svg -d 'as a picture'

complete -c flavourctl -n "__flavourctl_in plot" -s h -l help -d 'show this help message and exit'
complete -c flavourctl -n "__flavourctl_in plot" -l json -d 'print one JSON object'
complete -c flavourctl -n "__flavourctl_in plot" -l no-color -d 'no colours (as NO_COLOR)'
complete -c flavourctl -n "__flavourctl_in plot" -s o -l output -rF -d 'write it there instead of to stdout'
complete -c flavourctl -n '__flavourctl_in plot' -xa '(__flavourctl_attempts)'

complete -c flavourctl -n "__flavourctl_in history" -s h -l help -d 'show this help message and exit'
complete -c flavourctl -n "__flavourctl_in history" -l json -d 'print one JSON object'
complete -c flavourctl -n "__flavourctl_in history" -l no-color -d 'no colours (as NO_COLOR)'
complete -c flavourctl -n "__flavourctl_in history" -s n -l number -x -d 'show the last N attempts only'
complete -c flavourctl -n '__flavourctl_at history 1' -xa '(__flavourctl_devices)'

complete -c flavourctl -n "__flavourctl_in resolve" -s h -l help -d 'show this help message and exit'
complete -c flavourctl -n "__flavourctl_in resolve" -l json -d 'print one JSON object'
complete -c flavourctl -n "__flavourctl_in resolve" -l no-color -d 'no colours (as NO_COLOR)'
complete -c flavourctl -n "__flavourctl_in resolve" -l modules-dir -rF -d 'read this instead of /lib/modules/RELEASE'
complete -c flavourctl -n "__flavourctl_in resolve" -l modprobe-d -rF -d 'read this instead of the system\'s modprobe.d'
complete -c flavourctl -n '__flavourctl_at resolve 1' -xa '(__flavourctl_devices)'

complete -c flavourctl -n "__flavourctl_in set" -s h -l help -d 'show this help message and exit'
complete -c flavourctl -n "__flavourctl_in set" -l json -d 'print one JSON object'
complete -c flavourctl -n "__flavourctl_in set" -l no-color -d 'no colours (as NO_COLOR)'
complete -c flavourctl -n "__flavourctl_in set" -l driver -xa '(__flavourctl_drivers)' -d 'this driver or module instead of the best; repeat it to name the next to try'
complete -c flavourctl -n "__flavourctl_in set" -l dry-run -d 'say what would be done, step by step'
complete -c flavourctl -n "__flavourctl_in set" -l strict -d 'exit with 4 if only the generic driver took it'
complete -c flavourctl -n "__flavourctl_in set" -l persist -d 'keep it across reboots, until reset (root)'
complete -c flavourctl -n "__flavourctl_in set" -l force -d 'take it even though it is in use (root)'
complete -c flavourctl -n "__flavourctl_in set" -l group -xa 'refuse together ignore' -d 'when others in its IOMMU group aren\'t on VFIO: refuse, switch all together, or ignore them'
complete -c flavourctl -n "__flavourctl_in set" -l timeout -x -d 'give up after S seconds'
complete -c flavourctl -n "__flavourctl_in set" -l no-wait -d 'return once the device is being changed'
complete -c flavourctl -n '__flavourctl_at set 1' -xa '(__flavourctl_devices)'
complete -c flavourctl -n '__flavourctl_at set 2' -xa '(__flavourctl_flavours)'

complete -c flavourctl -n "__flavourctl_in reset" -s h -l help -d 'show this help message and exit'
complete -c flavourctl -n "__flavourctl_in reset" -l json -d 'print one JSON object'
complete -c flavourctl -n "__flavourctl_in reset" -l no-color -d 'no colours (as NO_COLOR)'
complete -c flavourctl -n "__flavourctl_in reset" -l force -d 'take it even though it is in use (root)'
complete -c flavourctl -n "__flavourctl_in reset" -l group -xa 'refuse together ignore' -d 'when others in its IOMMU group aren\'t on VFIO: refuse, switch all together, or ignore them'
complete -c flavourctl -n "__flavourctl_in reset" -l timeout -x -d 'give up after S seconds'
complete -c flavourctl -n "__flavourctl_in reset" -l no-wait -d 'return once the device is being changed'
complete -c flavourctl -n '__flavourctl_at reset 1' -xa '(__flavourctl_devices)'

complete -c flavourctl -n "__flavourctl_in check" -s h -l help -d 'show this help message and exit'
complete -c flavourctl -n "__flavourctl_in check" -l json -d 'print one JSON object'
complete -c flavourctl -n "__flavourctl_in check" -l no-color -d 'no colours (as NO_COLOR)'
complete -c flavourctl -n '__flavourctl_in check' -rF

complete -c flavourctl -n "__flavourctl_in cat-config" -s h -l help -d 'show this help message and exit'
complete -c flavourctl -n "__flavourctl_in cat-config" -l json -d 'print one JSON object'
complete -c flavourctl -n "__flavourctl_in cat-config" -l no-color -d 'no colours (as NO_COLOR)'

complete -c flavourctl -n "__flavourctl_in reload" -s h -l help -d 'show this help message and exit'
complete -c flavourctl -n "__flavourctl_in reload" -l json -d 'print one JSON object'
complete -c flavourctl -n "__flavourctl_in reload" -l no-color -d 'no colours (as NO_COLOR)'

complete -c flavourctl -n "__flavourctl_in doctor" -s h -l help -d 'show this help message and exit'
complete -c flavourctl -n "__flavourctl_in doctor" -l json -d 'print one JSON object'
complete -c flavourctl -n "__flavourctl_in doctor" -l no-color -d 'no colours (as NO_COLOR)'

complete -c flavourctl -n "__flavourctl_in import" -s h -l help -d 'show this help message and exit'
complete -c flavourctl -n "__flavourctl_in import" -l json -d 'print one JSON object'
complete -c flavourctl -n "__flavourctl_in import" -l no-color -d 'no colours (as NO_COLOR)'
complete -c flavourctl -n '__flavourctl_at import 1' -xa 'driverctl modprobe'

complete -c flavourctl -n "__flavourctl_in explain" -s h -l help -d 'show this help message and exit'
complete -c flavourctl -n "__flavourctl_in explain" -l json -d 'print one JSON object'
complete -c flavourctl -n "__flavourctl_in explain" -l no-color -d 'no colours (as NO_COLOR)'
complete -c flavourctl -n '__flavourctl_at explain 1' -xa 'no-such-device device-gone not-an-address no-such-flavour invalid-argument nothing-found driver-stays-bound in-use needed-by-host users-unknown is-a-bridge group-not-viable group-busy too-many-requests no-iommu stuck timed-out no-candidate module-not-loaded no-driver-took-it write-refused still-not-native changed-by-someone-else not-put-back not-saved not-permitted daemon-not-running daemon-went-away invalid-policy interrupted fell-back failed'
