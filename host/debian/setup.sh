# Runs in the new Debian root, as its root, once all packages are there: makes a guest of it. lodge holds this text
# (host/image_debian.c) and sets root_login, cloud_init and root_uuid before it. What depends on the disk
# (fstab, the boot loader's menu) is written later, when there is one.
set -eu
export LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive

# ---- console: who holds the console holds the disk, so it needs no password; nothing else gets in without one ----
if [ "$root_login" = auto ]; then
	for unit in serial-getty@ getty@; do
		mkdir -p "/etc/systemd/system/$unit.service.d"
		cat >"/etc/systemd/system/$unit.service.d/lodge.conf" <<-'END'
			[Service]
			ExecStart=
			ExecStart=-/sbin/agetty --autologin root --noclear --keep-baud 115200,57600,38400,9600 - $TERM
		END
	done
fi
passwd --quiet --lock root

# The size and kind of the terminal that `lodge run` was called on.
cat >/etc/profile.d/lodge-terminal.sh <<'END'
case $(tty) in
/dev/ttyS0 | /dev/hvc0)
	for lodge_word in $(cat /proc/cmdline); do
		case $lodge_word in
		lodge.tty=*)
			lodge_word=${lodge_word#lodge.tty=}
			IFS=x, read -r lodge_rows lodge_columns lodge_term <<-SIZE
				$lodge_word
			SIZE
			stty rows "$lodge_rows" cols "$lodge_columns" 2>/dev/null
			[ -z "$lodge_term" ] || export TERM="$lodge_term"
			;;
		esac
	done
	unset lodge_word lodge_rows lodge_columns lodge_term
	;;
esac
END

# ---- network: DHCP on every Ethernet card, unless something more exact is configured ----
cat >/etc/systemd/network/90-lodge.network <<'END'
[Match]
Type=ether

[Network]
DHCP=yes

[DHCPv4]
UseDomains=yes
END
mkdir -p /etc/systemd/system/systemd-networkd-wait-online.service.d
cat >/etc/systemd/system/systemd-networkd-wait-online.service.d/lodge.conf <<'END'
# A machine without a network must not wait two minutes for one.
[Service]
ExecStart=
ExecStart=/lib/systemd/systemd-networkd-wait-online --any --timeout=20
END
systemctl --quiet enable systemd-networkd systemd-resolved

# ---- ssh: every machine has keys of its own ----
rm -f /etc/ssh/ssh_host_*
cat >/etc/systemd/system/lodge-ssh-keys.service <<'END'
[Unit]
Description=Make this machine's SSH keys
Before=ssh.service
ConditionPathExists=!/etc/ssh/ssh_host_ed25519_key

[Service]
Type=oneshot
ExecStart=/bin/sh -c 'for kind in ed25519 ecdsa; do ssh-keygen -q -t $kind -N "" -f /etc/ssh/ssh_host_$${kind}_key </dev/null; done'

[Install]
WantedBy=ssh.service
END
systemctl --quiet enable lodge-ssh-keys

# ---- directories of the host: lodge.share=TAG:DIRECTORY[:ro] on the kernel's command line ----
mkdir -p /etc/systemd/system-generators
cat >/etc/systemd/system-generators/lodge-shares <<'END'
#!/bin/sh
# Makes a mount unit of each lodge.share=TAG:DIRECTORY[:ro]. Blanks and such are written as \040.
for word in $(cat /proc/cmdline); do
	case $word in
	lodge.share=*:/*) ;;
	*) continue ;;
	esac
	word=${word#lodge.share=}
	options=rw,nofail
	case $word in
	*:ro)
		options=ro,nofail
		word=${word%:ro}
		;;
	esac
	tag=${word%%:*}
	where=$(printf '%b' "$(printf '%s' "${word#*:}" | sed 's/\\\([0-7][0-7][0-7]\)/\\0\1/g')")
	unit=$(systemd-escape --path --suffix=mount "$where")
	printf '[Unit]\nDescription=%s of the host\nDocumentation=man:lodge(1)\nBefore=local-fs.target\n\n[Mount]\nWhat=%s\nWhere=%s\nType=virtiofs\nOptions=%s\n' \
		"$tag" "$tag" "$(printf '%s' "$where" | sed 's/%/%%/g')" "$options" >"$1/$unit"
	mkdir -p "$1/local-fs.target.wants"
	ln -sf "../$unit" "$1/local-fs.target.wants/$unit"
done
END
chmod 755 /etc/systemd/system-generators/lodge-shares

# ---- cloud-init: only looks where lodge and users put something; without a seed it does not start at all ----
if [ "$cloud_init" = yes ]; then
	cat >/etc/cloud/cloud.cfg.d/90_lodge.cfg <<-'END'
		datasource_list: [ NoCloud, ConfigDrive, None ]
		ssh_genkeytypes: [ ed25519, ecdsa ]
		ssh: { emit_keys_to_console: false }
		no_ssh_fingerprints: true
		locale: C.UTF-8
	END
	printf 'policy: search,found=all,maybe=none,notfound=disabled\n' >/etc/cloud/ds-identify.cfg
fi

# ---- boot: an initial RAM disk with what the disk may hang on, and a boot loader for firmware that looks for one ----
cat >>/etc/initramfs-tools/modules <<'END'
virtio_pci
virtio_mmio
virtio_blk
virtio_scsi
sd_mod
ata_piix
ahci
nvme
ext4
END
printf 'COMPRESS=zstd\nMODULES=list\nRESUME=none\n' >/etc/initramfs-tools/conf.d/lodge
update-initramfs -u -k all

mkdir -p /usr/lib/lodge/grub
cat >/usr/lib/lodge/grub/early.cfg <<END
search --no-floppy --set=root --fs-uuid $root_uuid
set prefix=(\$root)/boot/grub
END
grub-mkimage -O i386-pc -p /boot/grub -c /usr/lib/lodge/grub/early.cfg -o /usr/lib/lodge/grub/core.img \
	biosdisk part_gpt part_msdos ext2 search search_fs_uuid normal linux configfile echo test serial terminal minicmd reboot halt
grub-mkimage -O x86_64-efi -p /boot/grub -c /usr/lib/lodge/grub/early.cfg -o /usr/lib/lodge/grub/bootx64.efi \
	part_gpt part_msdos ext2 fat search search_fs_uuid normal linux configfile echo test serial terminal minicmd reboot halt
cp /usr/lib/grub/i386-pc/boot.img /usr/lib/lodge/grub/

# ---- nothing of the machine that it was built on ----
: >/etc/machine-id
rm -f /etc/.resolv.conf.systemd-resolved.bak /etc/apt/apt.conf.d/99mmdebstrap /var/lib/dbus/machine-id /var/lib/systemd/random-seed
echo debian >/etc/hostname
chmod 644 /etc/hostname
printf '127.0.0.1\tlocalhost\n::1\t\tlocalhost ip6-localhost ip6-loopback\nff02::1\t\tip6-allnodes\nff02::2\t\tip6-allrouters\n' >/etc/hosts
# (/tmp holds mmdebstrap's own configuration of apt, without which it would clean the host's lists)
rm -rf /var/log/journal
find /var/log -type f -exec truncate -s 0 {} +
