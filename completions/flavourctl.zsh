#compdef flavourctl
# Completion for flavourctl; made from its parser by `make reference`.

# With the domain, or where nothing begins so, without.
_flavourctl_devices() {
    local -a devices drivers
    local device
    for device in /sys/bus/pci/devices/*(N); do
        devices+=(${device:t})
        drivers+=("${device:t}  ${${:-$device/driver}:A:t}")
    done
    drivers=(${drivers/%  driver/  no driver})
    compadd -l -d drivers -a devices || { devices=(${devices#0000:}); compadd -l -d drivers -a devices }
}

# By number, which only root can read, or by device.
_flavourctl_attempts() {
    local -a ids=(${(f)"$(sed -n 's/^{"id": \([0-9]*\).*/\1/p' /run/vfio-flavourd/history.jsonl 2> /dev/null)"})
    compadd -a ids
    _flavourctl_devices
}

_flavourctl_drivers() {
    local -a drivers=(auto /sys/bus/pci/drivers/*(N:t))
    compadd -a drivers
}

# The device's file names all that it can be.
_flavourctl_flavours() {
    local device=$line[1] flavours='native vfio'
    [[ $device == *:*:* ]] || device=0000:$device
    [[ -r /run/vfio-flavour/$device/driver_flavour ]] && read -r flavours < /run/vfio-flavour/$device/driver_flavour
    compadd -- ${=flavours//[\[\]]/}
}

_flavourctl_columns() { _values -s , column device flavour driver candidate group rule name ids class node before policy slot }

_flavourctl_files() { _files }

_flavourctl_directories() { _files -/ }

_flavourctl_verbs() {
    local -a verbs=(
        'list:all devices (the default)'
        'show:all about one device'
        'monitor:what is being switched, as it happens, until Ctrl-C'
        'groups:the IOMMU groups: could a guest have them, and what it takes'
        'plot:a timeline of one or more switches, as a picture (SVG)'
        'history:what has been tried since the boot'
        'resolve:which drivers could serve it; needs no daemon'
        'set:give a device a flavour'
        'reset:back to what the policy says, or to what was there before'
        'check:is the policy valid, and what is wrong with it; needs no daemon'
        'cat-config:the merged policy and where it comes from; needs no daemon'
        'reload:have the daemon read the policy and the index again'
        'doctor:is this host ready, and what stands in the way; needs no daemon'
        'import:print a policy made of what driverctl or modprobe.d say; needs no daemon'
        'explain:what an error code means, and what to do; needs no daemon'
    )
    _describe -t verbs verb verbs
}

_flavourctl_of_verb() {
    case $1 in
        list) _arguments '*-h[show this help message and exit]' '*--help[show this help message and exit]' '*--json[print one JSON object]' '*--no-color[no colours (as NO_COLOR)]' '*--columns[these columns, in this order]:NAME,...:_flavourctl_columns' '*--noheadings[no line with the columns'\'' names]' ;;
        show) _arguments '*-h[show this help message and exit]' '*--help[show this help message and exit]' '*--json[print one JSON object]' '*--no-color[no colours (as NO_COLOR)]' ':DEV:_flavourctl_devices' ;;
        monitor) _arguments '*-h[show this help message and exit]' '*--help[show this help message and exit]' '*--json[print one JSON object]' '*--no-color[no colours (as NO_COLOR)]' ;;
        groups) _arguments '*-h[show this help message and exit]' '*--help[show this help message and exit]' '*--json[print one JSON object]' '*--no-color[no colours (as NO_COLOR)]' '*--tree[as text (the default)]' '*--dot[for Graphviz]' '*--svg[as a picture]' ;;
        plot) _arguments '*-h[show this help message and exit]' '*--help[show this help message and exit]' '*--json[print one JSON object]' '*--no-color[no colours (as NO_COLOR)]' '*-o[write it there instead of to stdout]:FILE:_flavourctl_files' '*--output[write it there instead of to stdout]:FILE:_flavourctl_files' '*:ID|DEV:_flavourctl_attempts' ;;
        history) _arguments '*-h[show this help message and exit]' '*--help[show this help message and exit]' '*--json[print one JSON object]' '*--no-color[no colours (as NO_COLOR)]' '*-n[show the last N attempts only]:N: ' '*--number[show the last N attempts only]:N: ' ':DEV:_flavourctl_devices' ;;
        resolve) _arguments '*-h[show this help message and exit]' '*--help[show this help message and exit]' '*--json[print one JSON object]' '*--no-color[no colours (as NO_COLOR)]' '*--modules-dir[read this instead of /lib/modules/RELEASE]:DIR:_flavourctl_directories' '*--modprobe-d[read this instead of the system'\''s modprobe.d]:DIR:_flavourctl_directories' ':DEV|MODALIAS:_flavourctl_devices' ;;
        set) _arguments '*-h[show this help message and exit]' '*--help[show this help message and exit]' '*--json[print one JSON object]' '*--no-color[no colours (as NO_COLOR)]' '*--driver[this driver or module instead of the best; repeat it to name the next to try]:D:_flavourctl_drivers' '*--dry-run[say what would be done, step by step]' '*--strict[exit with 4 if only the generic driver took it]' '*--persist[keep it across reboots, until reset (root)]' '*--force[take it even though it is in use (root)]' '*--group[when others in its IOMMU group aren'\''t on VFIO\: refuse, switch all together, or ignore them]:group:(refuse together ignore)' '*--timeout[give up after S seconds]:S: ' '*--no-wait[return once the device is being changed]' ':DEV:_flavourctl_devices' ':FLAVOUR:_flavourctl_flavours' ;;
        reset) _arguments '*-h[show this help message and exit]' '*--help[show this help message and exit]' '*--json[print one JSON object]' '*--no-color[no colours (as NO_COLOR)]' '*--force[take it even though it is in use (root)]' '*--group[when others in its IOMMU group aren'\''t on VFIO\: refuse, switch all together, or ignore them]:group:(refuse together ignore)' '*--timeout[give up after S seconds]:S: ' '*--no-wait[return once the device is being changed]' ':DEV:_flavourctl_devices' ;;
        check) _arguments '*-h[show this help message and exit]' '*--help[show this help message and exit]' '*--json[print one JSON object]' '*--no-color[no colours (as NO_COLOR)]' '*:FILE:_flavourctl_files' ;;
        cat-config) _arguments '*-h[show this help message and exit]' '*--help[show this help message and exit]' '*--json[print one JSON object]' '*--no-color[no colours (as NO_COLOR)]' ;;
        reload) _arguments '*-h[show this help message and exit]' '*--help[show this help message and exit]' '*--json[print one JSON object]' '*--no-color[no colours (as NO_COLOR)]' ;;
        doctor) _arguments '*-h[show this help message and exit]' '*--help[show this help message and exit]' '*--json[print one JSON object]' '*--no-color[no colours (as NO_COLOR)]' ;;
        import) _arguments '*-h[show this help message and exit]' '*--help[show this help message and exit]' '*--json[print one JSON object]' '*--no-color[no colours (as NO_COLOR)]' ':source:(driverctl modprobe)' ;;
        explain) _arguments '*-h[show this help message and exit]' '*--help[show this help message and exit]' '*--json[print one JSON object]' '*--no-color[no colours (as NO_COLOR)]' ':CODE:(no-such-device device-gone not-an-address no-such-flavour invalid-argument nothing-found driver-stays-bound in-use needed-by-host users-unknown is-a-bridge group-not-viable group-busy too-many-requests no-iommu stuck timed-out no-candidate module-not-loaded no-driver-took-it write-refused still-not-native changed-by-someone-else not-put-back not-saved not-permitted daemon-not-running daemon-went-away invalid-policy interrupted fell-back failed)' ;;
    esac
}

_flavourctl_global=('*-h[show this help message and exit]' '*--help[show this help message and exit]' '*--json[print one JSON object]' '*--no-color[no colours (as NO_COLOR)]' '*--version[show program'\''s version number and exit]')

_flavourctl() {
    local curcontext=$curcontext state line
    _arguments -C $_flavourctl_global '1:verb:_flavourctl_verbs' '*::argument:->of_verb'
    [[ $state == of_verb ]] && _flavourctl_of_verb $line[1]
}

_flavourctl "$@"
