# Runs inside a node of a lab with NVMe: three hosts to one namespace from one kernel, as /dev/nvme0n1, nvme1n1, nvme2n1.
# Native multipath would make one disk of them, so nvme_core is loaded anew without it.
set -eu
read -r cmdline </proc/cmdline
for item in $cmdline; do
    case $item in hwlab.target=*) target=${item#*=} ;; esac
done
for controller in /sys/class/nvme/nvme*; do
    [ ! -e "$controller" ] || echo 1 >"$controller/delete_controller"
done
modprobe -r nvme_tcp nvme_loop nvmet_tcp nvmet nvme_fabrics nvme_core
modprobe nvme_core multipath=N
modprobe nvme_tcp
for number in 1 2 3; do
    host=0000000$number-0000-4000-8000-00000000c0de
    options="transport=tcp,nqn=${target%,*},traddr=${target#*,},trsvcid=4420,nr_io_queues=1,keep_alive_tmo=5"
    echo "$options,hostnqn=nqn.2014-08.org.nvmexpress:uuid:$host,hostid=$host" >/dev/nvme-fabrics
done
for _ in $(seq 100); do
    [ -b /dev/nvme0n1 ] && [ -b /dev/nvme1n1 ] && [ -b /dev/nvme2n1 ] && exit 0
    sleep 0.1
done
exit 1
