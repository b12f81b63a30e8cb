# Completion for flavourctl; made from its parser by `make reference`.
# shellcheck shell=bash disable=SC2207,SC2034 # no blanks in sysfs; what bash-completion sets

_flavourctl_nothing() { :; }

_flavourctl_words() { COMPREPLY=($(compgen -W "$*" -- "$cur")); }

# With the domain, or where nothing begins so, without.
_flavourctl_devices() {
    local devices=(/sys/bus/pci/devices/*)
    devices=("${devices[@]##*/}")
    _flavourctl_words "${devices[@]}"
    ((${#COMPREPLY[@]})) || _flavourctl_words "${devices[@]#0000:}"
    __ltrim_colon_completions "$cur"
}

# By number, which only root can read, or by device.
_flavourctl_attempts() {
    _flavourctl_devices
    COMPREPLY+=($(compgen -W "$(sed -n 's/^{"id": \([0-9]*\).*/\1/p' /run/vfio-flavourd/history.jsonl 2> /dev/null)" -- "$cur"))
}

_flavourctl_drivers() {
    local drivers=(/sys/bus/pci/drivers/*)
    _flavourctl_words auto "${drivers[@]##*/}"
}

# The device's file names all that it can be.
_flavourctl_flavours() {
    local device=${arguments[1]} flavours='native vfio'
    [[ $device == *:*:* ]] || device=0000:$device
    if [[ -r /run/vfio-flavour/$device/driver_flavour ]]; then
        read -r flavours < "/run/vfio-flavour/$device/driver_flavour"
    fi
    _flavourctl_words "${flavours//[][]/}"
}

# A list with commas: what is being typed is its last word.
_flavourctl_columns() {
    local before=
    [[ $cur != *,* ]] || before=${cur%,*},
    COMPREPLY=($(compgen -P "$before" -W "device flavour driver candidate group rule name ids class node before policy slot" -- "${cur##*,}"))
    compopt -o nospace
}

_flavourctl_files() { _filedir; }

_flavourctl_directories() { _filedir -d; }

_flavourctl_takes_value() {
    [[ $1 == @(--columns|-o|--output|-n|--number|--modules-dir|--modprobe-d|--driver|--group|--timeout) ]]
}

_flavourctl_value() {
    case $1 in
        --columns) _flavourctl_columns ;;
        -o) _flavourctl_files ;;
        --output) _flavourctl_files ;;
        -n) _flavourctl_nothing ;;
        --number) _flavourctl_nothing ;;
        --modules-dir) _flavourctl_directories ;;
        --modprobe-d) _flavourctl_directories ;;
        --driver) _flavourctl_drivers ;;
        --group) _flavourctl_words refuse together ignore ;;
        --timeout) _flavourctl_nothing ;;
    esac
}

_flavourctl_options() {
    case $1 in
        list) _flavourctl_words -h --help --json --no-color --columns --noheadings ;;
        show) _flavourctl_words -h --help --json --no-color ;;
        monitor) _flavourctl_words -h --help --json --no-color ;;
        groups) _flavourctl_words -h --help --json --no-color --tree --dot --svg ;;
        plot) _flavourctl_words -h --help --json --no-color -o --output ;;
        history) _flavourctl_words -h --help --json --no-color -n --number ;;
        resolve) _flavourctl_words -h --help --json --no-color --modules-dir --modprobe-d ;;
        set) _flavourctl_words -h --help --json --no-color --driver --dry-run --strict --persist --force --group --timeout --no-wait ;;
        reset) _flavourctl_words -h --help --json --no-color --force --group --timeout --no-wait ;;
        check) _flavourctl_words -h --help --json --no-color ;;
        cat-config) _flavourctl_words -h --help --json --no-color ;;
        reload) _flavourctl_words -h --help --json --no-color ;;
        doctor) _flavourctl_words -h --help --json --no-color ;;
        import) _flavourctl_words -h --help --json --no-color ;;
        explain) _flavourctl_words -h --help --json --no-color ;;
        *) _flavourctl_words -h --help --json --no-color --version ;;
    esac
}

_flavourctl_argument() {
    case $1:$2 in
        :1) _flavourctl_words list show monitor groups plot history resolve set reset check cat-config reload doctor import explain ;;
        show:1) _flavourctl_devices ;;
        plot:*) _flavourctl_attempts ;;
        history:1) _flavourctl_devices ;;
        resolve:1) _flavourctl_devices ;;
        set:1) _flavourctl_devices ;;
        set:2) _flavourctl_flavours ;;
        reset:1) _flavourctl_devices ;;
        check:*) _flavourctl_files ;;
        import:1) _flavourctl_words driverctl modprobe ;;
        explain:1) _flavourctl_words no-such-device device-gone not-an-address no-such-flavour invalid-argument nothing-found driver-stays-bound in-use needed-by-host users-unknown is-a-bridge group-not-viable group-busy too-many-requests no-iommu stuck timed-out no-candidate module-not-loaded no-driver-took-it write-refused still-not-native changed-by-someone-else not-put-back not-saved not-permitted daemon-not-running daemon-went-away invalid-policy interrupted fell-back failed ;;
    esac
}

_flavourctl() {
    local cur prev words cword split
    _init_completion -s -n : || return
    local arguments=() i
    for ((i = 1; i < cword; i++)); do
        if _flavourctl_takes_value "${words[i]}"; then
            ((i++))
        elif [[ ${words[i]} != -* ]]; then
            arguments+=("${words[i]}")
        fi
    done
    local verb=${arguments[0]}
    if _flavourctl_takes_value "$prev"; then
        _flavourctl_value "$prev"
    elif [[ $cur == -* ]]; then
        _flavourctl_options "$verb"
    elif [[ -n $verb ]]; then
        _flavourctl_argument "$verb" "${#arguments[@]}"
    else
        _flavourctl_argument '' 1
    fi
} &&
    complete -F _flavourctl flavourctl
