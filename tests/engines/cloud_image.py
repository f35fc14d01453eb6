"""A disk image of Debian with systemd and cloud-init, as distributions publish them, built from packages.

It takes minutes and some 500 MB; what is built is kept where tiny guests are.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from tests.conftest import require_tool
from tests.engines.guest_images import CACHE, PREAMBLE, Guest, built, disk_qcow2, run

SUITE = "bookworm"
MIRROR = "http://deb.debian.org/debian"
INCLUDE = "systemd-sysv,udev,dbus,isc-dhcp-client,ifupdown,iproute2,python3,kmod"
INSTALL = """
export DEBIAN_FRONTEND=noninteractive
apt-get -q update
apt-get -q -y --no-install-recommends install cloud-init
systemctl enable cloud-init-local cloud-init cloud-config cloud-final
systemctl mask getty.target systemd-timesyncd apt-daily.timer apt-daily-upgrade.timer
echo 'locale: false' >/etc/cloud/cloud.cfg.d/99-image.cfg
echo '/dev/vda2 / ext4 defaults 0 0' >/etc/fstab
rm -rf /var/lib/cloud /var/cache/apt/archives/*.deb /var/lib/apt/lists/*
: >/etc/machine-id
"""
INIT = (
    PREAMBLE
    + """
until [ -b /dev/vda2 ]; do sleep 1; done
mount -t ext4 /dev/vda2 /mnt
umount /proc /sys; mount --move /dev /mnt/dev
exec switch_root /mnt /lib/systemd/systemd
"""
)
ON_AWS = """
echo 'datasource_list: [Ec2]' >/mnt/etc/cloud/cloud.cfg.d/90-ec2.cfg
echo ec2c0ffe-0000-4000-8000-000000000000 >/mnt/etc/aws-uuid
cat >/mnt/etc/systemd/system/aws.service <<'EOF'
[Unit]
DefaultDependencies=no
Before=cloud-init-local.service
[Service]
Type=oneshot
ExecStart=mount --bind /etc/aws-uuid /sys/devices/virtual/dmi/id/product_uuid
ExecStart=mount --bind /etc/aws-uuid /sys/devices/virtual/dmi/id/product_serial
EOF
mkdir -p /mnt/etc/systemd/system/cloud-init-local.service.requires
ln -sf ../aws.service /mnt/etc/systemd/system/cloud-init-local.service.requires/aws.service
"""
"""Sign of an Amazon host to cloud-init, which then gets a token first, as IMDSv2 demands."""
SIZE_MB = 1500


def cloud_image(aws: bool = False) -> Path:
    """The image, qcow2. How to find its metadata service is left to cloud-init itself, or it is told to be on AWS."""
    root = built("ext4", {"packages": f"{SUITE} {INCLUDE}", "install": INSTALL}, _make)
    init = INIT.replace("umount /proc", f"{ON_AWS}umount /proc") if aws else INIT
    return disk_qcow2(Guest(init), root)


def _make(target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        root = Path(name, "root")
        run(
            require_tool("debootstrap"), "--variant=minbase", f"--include={INCLUDE}", SUITE, str(root), MIRROR
        )
        command = ["chroot", str(root), "sh", "-eu"]
        done = subprocess.run(command, input=INSTALL.encode(), capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        with target.open("wb") as file:
            file.truncate(SIZE_MB * 1024 * 1024)
        run("mkfs.ext4", "-q", "-F", "-d", str(root), str(target))
