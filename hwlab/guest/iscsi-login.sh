#!/bin/sh
# Log in to the lab's target and keep trying: the target may boot later than the node.
# After the first login iscsid itself reconnects for as long as the session exists.
#
#   hwlab.target=IQN,PORTAL[,PORTAL]     one session through each portal
set -u

target=
read -r cmdline </proc/cmdline
for item in $cmdline; do
    case $item in hwlab.target=*) target=${item#*=} ;; esac
done
iqn=${target%%,*}

# The node database lies in /run (a link in the image): a record that a power loss left empty would stop every
# login from then on. So it is made at each boot.
mkdir -p /run/iscsi/nodes

login() {
    while :; do
        iscsiadm --mode node --targetname "$iqn" --portal "$1" --op new >/dev/null
        iscsiadm --mode node --targetname "$iqn" --portal "$1" --login
        status=$?
        # 15: the session exists already.
        if [ $status -eq 0 ] || [ $status -eq 15 ]; then return; fi
        sleep 0.3
    done
}

IFS=,
for portal in ${target#*,}; do
    login "$portal:3260" &
done
wait
