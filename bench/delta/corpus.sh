#!/usr/bin/env bash
# Build the delta corpus from the fetched packages: corpus.sh DIRECTORY [all]
# Writes DIRECTORY/pairs/NAME/{old,new}. Without `all` the 400 MB root file systems are left out.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=$1 all=${2:-}
cd "$work"
export LC_ALL=C TZ=UTC
mkdir -p pairs x trees
epoch=1735689600

put() { # put PAIR OLD NEW; a pair whose package is gone is left out
    [ -f "$2" ] && [ -f "$3" ] || { echo "left out: $1" >&2; return 0; }
    mkdir -p "pairs/$1"; cp "$2" "pairs/$1/old"; cp "$3" "pairs/$1/new"
}
one() { compgen -G "$1" | head -n 1 || true; }
tar_of() { tar --sort=name --mtime=@$epoch --owner=0 --group=0 --numeric-owner --format=gnu -C "$1" -cf "$2" .; }

for package in debs/misc/*.deb; do
    name=$(basename "$package" .deb)
    [ -d "x/$name" ] || { mkdir -p "x/$name"; dpkg-deb -x "$package" "x/$name"; }
done
for wheel in wheels/*.whl; do
    name=$(basename "$wheel" .whl)
    [ -d "x/$name" ] || python3 -m zipfile -e "$wheel" "x/$name"
done

# a: microcontrollers and boot loaders, up to 1 MB
if [ ! -d mcu ]; then
    mkdir mcu.new
    for archive in src/*.orig.tar.*; do case $archive in *.asc) ;; *) tar -C mcu.new -xf "$archive" ;; esac; done
    mv mcu.new/Mbed-TLS-mbedtls-* mcu.new/mbedtls-2.28.3
    mv mcu.new mcu
fi
for built in "1 5.4.4 2.1.3" "2 5.4.4 2.1.3" "3 5.4.7 2.2.1"; do
    read -r release lua lwip <<< "$built"
    [ -f "mcu/release$release.bin" ] || "$here/mcu/build.sh" "$PWD/mcu" "$release" "$lua" "$lwip" "release$release.bin"
done
put a1-mcu-fix mcu/release1.bin mcu/release2.bin
put a2-mcu-feat mcu/release1.bin mcu/release3.bin
firmware=usr/lib/riscv64-linux-gnu/opensbi/generic/fw_dynamic.bin
put a3-opensbi "$(one "x/opensbi_1.5.1*/$firmware")" "$(one "x/opensbi_1.6-1*/$firmware")"
put a4-seabios "$(one 'x/seabios_1.16.2*/usr/share/seabios/bios-256k.bin')" "$(one 'x/seabios_1.16.3*/usr/share/seabios/bios-256k.bin')"
put a5-uboot "$(one 'x/u-boot-rpi_2023*/usr/lib/u-boot/rpi_arm64/u-boot.bin')" "$(one 'x/u-boot-rpi_2025*/usr/lib/u-boot/rpi_arm64/u-boot.bin')"

# b: libraries, modules, images that are compressed inside
put b1-libcrypto "$(one 'x/libssl3_3.0.20*/usr/lib/aarch64-linux-gnu/libcrypto.so.3')" "$(one 'x/libssl3_3.0.22*/usr/lib/aarch64-linux-gnu/libcrypto.so.3')"
tar_pair() { tar_of "$(one "$2")" trees/old.tar; tar_of "$(one "$3")" trees/new.tar; put "$1" trees/old.tar trees/new.tar; rm -f trees/*.tar; }
tar_pair b2-pydantic 'x/pydantic_core-2.41.4*' 'x/pydantic_core-2.41.5*'
put b3-ovmf "$(one 'x/ovmf_*u1_all/usr/share/OVMF/OVMF_CODE_4M.fd')" "$(one 'x/ovmf_*u2_all/usr/share/OVMF/OVMF_CODE_4M.fd')"
put b4-aavmf "$(one 'x/qemu-efi*u1_all/usr/share/qemu-efi-aarch64/QEMU_EFI.fd')" "$(one 'x/qemu-efi*u2_all/usr/share/qemu-efi-aarch64/QEMU_EFI.fd')"
kernel() { one "x/linux-image-6.1.0-$1-arm64_*/boot/vmlinuz-*"; }
gzip -9nc "$(kernel 55)" > trees/old.gz; gzip -9nc "$(kernel 56)" > trees/new.gz
put b5-kernel-gz trees/old.gz trees/new.gz; rm -f trees/*.gz

# c: kernels and a large wheel
put c1-kernel-fix "$(kernel 55)" "$(kernel 56)"
put c2-kernel-6mo "$(kernel 50)" "$(kernel 56)"
tar_pair c3-numpy 'x/numpy-2.4.5*' 'x/numpy-2.4.6*'
# Embedded kernels are mostly built without BTF, and pahole's parallel order is not reproducible: the same pairs without it.
python3 - <<'PYTHON'
import struct, pathlib
for source, copy in (("c1-kernel-fix", "c4-kernel-fix-nobtf"), ("c2-kernel-6mo", "c5-kernel-6mo-nobtf")):
    pathlib.Path("pairs", copy).mkdir(exist_ok=True)
    for side in ("old", "new"):
        image = bytearray(pathlib.Path("pairs", source, side).read_bytes())
        start = image.find(b"\x9f\xeb\x01\x00")  # struct btf_header: magic, version, flags, then lengths
        header, types, types_length, strings, strings_length = struct.unpack_from("<5I", image, start + 4)
        length = header + max(types + types_length, strings + strings_length)
        image[start : start + length] = bytes(length)
        pathlib.Path("pairs", copy, side).write_bytes(image)
PYTHON

# k: kept aside; nothing in refdelta was tuned on these
aside() { put "$1" "$(one "x/$2/$4")" "$(one "x/$3/$4")"; }
aside k1-nginx 'nginx_1.22.1-9+deb12u9_*' 'nginx_1.22.1-9+deb12u11_*' usr/sbin/nginx
aside k2-redis 'redis-tools_*deb12u7_*' 'redis-tools_*deb12u10_*' usr/bin/redis-check-rdb
aside k3-libxml2 'libxml2_*deb12u4_*' 'libxml2_*deb12u6_*' 'usr/lib/aarch64-linux-gnu/libxml2.so.2.*'
aside k4-postgres 'postgresql-15_15.18-*' 'postgresql-15_15.20-*' usr/lib/postgresql/15/bin/postgres
aside k5-qemu 'qemu-system-arm_*deb12u15_*' 'qemu-system-arm_*deb12u18*' usr/bin/qemu-system-aarch64
cloud() { one "x/linux-image-6.1.0-$1-cloud-arm64_*/boot/vmlinuz-*"; }
gzip -9nc "$(cloud 50)" > trees/old.gz; gzip -9nc "$(cloud 56)" > trees/new.gz
put k6-cloud-gz trees/old.gz trees/new.gz; rm -f trees/*.gz
[ -n "$all" ] || exit 0

# d: a whole arm64 root file system of 255 packages and a cloud kernel, as ext4; months apart, and one hotfix apart
root() { # root NAME KERNEL PACKAGES...
    local tree=trees/$1 kernel=$2 package
    shift 2
    rm -rf "$tree"; mkdir -p "$tree"/usr/{bin,sbin,lib}
    for package in bin sbin lib; do ln -s "usr/$package" "$tree/$package"; done
    for package in "$@" "$kernel"; do
        dpkg-deb --fsys-tarfile "$package" | tar -x -C "$tree" --keep-directory-symlink --numeric-owner -p
    done
    rm -rf "$tree"/usr/share/{doc,man,info,locale,lintian} "$tree"/boot/config-* "$tree"/boot/System.map-* "$tree"/dev/*
    mkdir -p "$tree/var/lib/ota"
    printf '%s\n' "$@" "$kernel" | sed 's,.*/,,' > "$tree/var/lib/ota/packages.txt"
    find "$tree" -newermt @$epoch -print0 | xargs -0r touch -h -d @$epoch
    find "$tree" -type d -print0 | xargs -0r touch -d @$epoch
}
ext4() { # ext4 NAME: copied in sorted order first, so that inode numbers do not depend on this machine
    rm -rf "trees/$1.sorted"; mkdir "trees/$1.sorted"
    (cd "trees/$1" && find . -print0 | sort -z | tar -c --no-recursion --null -T - --numeric-owner) | tar -x -C "trees/$1.sorted" -p --numeric-owner
    find "trees/$1.sorted" -type d -print0 | xargs -0r touch -d @$epoch
    rm -f "trees/$1.ext4"; truncate -s 384M "trees/$1.ext4"
    E2FSPROGS_FAKE_TIME=$epoch SOURCE_DATE_EPOCH=$epoch mke2fs -q -t ext4 -d "trees/$1.sorted" -U 11111111-2222-3333-4444-555555555555 \
        -E hash_seed=66666666-7777-8888-9999-aaaaaaaaaaaa,root_owner=0:0,lazy_itable_init=0 -O ^has_journal,^metadata_csum_seed \
        -m 0 -N 32768 -b 4096 "trees/$1.ext4"
    rm -rf "trees/$1" "trees/$1.sorted"
}
old_kernel=$(one 'debs/misc/linux-image-6.1.0-50-cloud-arm64_*') new_kernel=$(one 'debs/misc/linux-image-6.1.0-56-cloud-arm64_*')
between=() # the new system with a handful of packages at their old version
for package in debs/new/*.deb; do
    name=$(basename "$package" | cut -d_ -f1)
    case $name in
        openssl | libssl3 | openssh-* | python3.11* | libpython3.11* | libexpat1) between+=("$(one "debs/old/${name}_*.deb")") ;;
        *) between+=("$package") ;;
    esac
done
[ -f trees/old.ext4 ] || { root old "$old_kernel" debs/old/*.deb; ext4 old; }
[ -f trees/new.ext4 ] || { root new "$new_kernel" debs/new/*.deb; ext4 new; }
[ -f trees/mid.ext4 ] || { root mid "$new_kernel" "${between[@]}"; ext4 mid; }
for pair in "d1-ext4 old" "d2-ext4-hotfix mid"; do
    read -r name side <<< "$pair"
    mkdir -p "pairs/$name"; ln -f "trees/$side.ext4" "pairs/$name/old"; ln -f trees/new.ext4 "pairs/$name/new"
done
