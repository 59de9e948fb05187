#!/bin/busybox sh
# The guest's first program. It makes the host's root file system its own, read-only, and hands over to /main.
/bin/busybox --install -s /bin
export PATH=/bin
mkdir -p /proc /root
mount -t proc proc /proc
for module in /modules/*; do
    insmod "$module" || echo "guest: cannot load $module"
done
mount -t virtiofs -o ro host /root || poweroff -f
cd /root
mount --move /proc proc
mount -t sysfs sysfs sys
mount -t devtmpfs devtmpfs dev
for directory in dev/shm run var/tmp var/lib; do
    mkdir -p $directory
    mount -t tmpfs tmpfs $directory
done
cp /main /command run
# Without this the initial root would stay in front of every path that the kernel tells.
exec switch_root /root /bin/sh /run/main
