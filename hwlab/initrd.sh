#!/bin/busybox sh
# First process of a QEMU guest: load what its disk needs, mount it with the kernel's modules, go on there.
# /modules lists the modules in the order in which they need each other.
bb=/bin/busybox
$bb mount -t devtmpfs dev /dev
for module in $($bb cat /modules); do
    $bb insmod "$module"
done
$bb mount -t ext4 -o rw /dev/vda /root &&
    $bb mount -t ext4 -o ro,noload /dev/vdb /root/lib/modules &&
    $bb mount -o move /dev /root/dev &&
    exec $bb switch_root /root /lib/systemd/systemd
echo "hwlab: cannot mount the root file system"
exec $bb reboot -f
