#!/bin/sh
# Connect to the lab's NVMe target, over each of its addresses, and keep trying: it may boot later than the node.
# Once connected, the kernel itself reconnects for ever (ctrl_loss_tmo=-1), once a second.
#
#   hwlab.target=NQN,ADDRESS,…
#   hwlab.hostid=UUID          this host's: registrations belong to it, over all connections
#   hwlab.keepalive=SECONDS    after so long a silence the host takes the target for lost; the target drops a silent host
#                              and all that it had in flight after as long, or twice as long. A preempt-and-abort of
#                              another host may wait for that. nvmet up to Linux 7.3 can crash if it drops a host in the
#                              midst of such a wait: let it be longer than the slowest write takes (docs/fencing.md)
#
# fast_io_fail_tmo: so long after the loss I/O fails instead of waiting, as with the replacement timeout of iscsid.conf.
set -u

target=
hostid=
keepalive=
read -r cmdline </proc/cmdline
for item in $cmdline; do
    case $item in
    hwlab.target=*) target=${item#*=} ;;
    hwlab.hostid=*) hostid=${item#*=} ;;
    hwlab.keepalive=*) keepalive=${item#*=} ;;
    esac
done
nqn=${target%%,*}
options="transport=tcp,nqn=$nqn,trsvcid=4420"
options="$options,hostnqn=nqn.2014-08.org.nvmexpress:uuid:$hostid,hostid=$hostid"
options="$options,keep_alive_tmo=$keepalive,reconnect_delay=1,ctrl_loss_tmo=-1,fast_io_fail_tmo=5"

connected() {
    for file in /sys/class/nvme/*/address; do
        [ -e "$file" ] && read -r address <"$file" || continue
        case $address, in *traddr=$1,*) return 0 ;; esac
    done
    return 1
}

missing=1
while [ $missing -ne 0 ]; do
    missing=0
    IFS=,
    for portal in ${target#*,}; do
        connected "$portal" && continue
        # The kernel takes its options in one write, and says why it refuses them in the journal.
        echo "$options,traddr=$portal" >/dev/nvme-fabrics || missing=1
    done
    unset IFS
    [ $missing -eq 0 ] || sleep 1
done
