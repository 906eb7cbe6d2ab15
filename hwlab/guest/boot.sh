#!/bin/sh
# First thing a lab host does: become the host that the kernel command line describes.
#
#   hwlab.nic=vec                                    how the kernel names its interfaces: vec0, vec1, …
#   hwlab.net=mgmt,10.77.0.11/24;lan,10.77.1.11/24   what they are to be, in that order
#   hwlab.initiator=iqn.…                            iSCSI initiator name of a node
#   hwlab.hostid=UUID                                NVMe host id: its own name follows from it
#
# Shell built-ins and one `ip -batch`: a fork costs about 30 ms in a guest.
set -eu

nic=
net=
initiator=
hostid=
read -r cmdline </proc/cmdline
for item in $cmdline; do
    case $item in
    hwlab.nic=*) nic=${item#*=} ;;
    hwlab.net=*) net=${item#*=} ;;
    hwlab.initiator=*) initiator=${item#*=} ;;
    hwlab.hostid=*) hostid=${item#*=} ;;
    esac
done

if [ -n "$initiator" ]; then
    echo "InitiatorName=$initiator" >/etc/iscsi/initiatorname.iscsi
fi

if [ -n "$hostid" ]; then
    [ -d /etc/nvme ] || mkdir /etc/nvme
    echo "$hostid" >/etc/nvme/hostid
    echo "nqn.2014-08.org.nvmexpress:uuid:$hostid" >/etc/nvme/hostnqn
fi

index=0
IFS=';'
{
    echo "link set lo up"
    for pair in $net; do
        name=${pair%,*}
        echo "link set $nic$index name $name"
        echo "address add ${pair#*,} dev $name"
        echo "link set $name up"
        index=$((index + 1))
    done
} | ip -batch -
