#!/usr/bin/env bash
# Download the packages of which the delta corpus is made: fetch.sh DIRECTORY
#
# Everything comes from the Debian mirror this machine's apt already uses, through a private arm64 apt root (no
# `dpkg --add-architecture`), and from the package index pip already uses. Nothing outside DIRECTORY is changed.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=$1
mkdir -p "$work"/{apt/lists/partial,apt/cache/archives/partial,apt/sources.list.d,debs/old,debs/new,debs/misc,src,wheels}
cd "$work"

mirror=$(apt-get indextargets --format '$(ORIGIN)|$(RELEASE)|$(REPO_URI)' | sed -n 's/^Debian|bookworm|//p' | head -n 1)
security=$(apt-get indextargets --format '$(ORIGIN)|$(RELEASE)|$(REPO_URI)' | sed -n 's/^Debian|bookworm-security|//p' | head -n 1)
[ -n "$mirror" ] || { echo "apt on this machine knows no Debian bookworm mirror" >&2; exit 1; }
{
    for suite in bookworm bookworm-updates bookworm-backports trixie; do
        echo "deb [arch=arm64] $mirror $suite main"
        echo "deb-src $mirror $suite main"
    done
    echo "deb [arch=arm64] ${security:-$mirror} bookworm-security main"
} > apt/sources.list
cat > apt/apt.conf <<CONF
Dir::State "$PWD/apt";
Dir::State::lists "$PWD/apt/lists";
Dir::State::status "$PWD/apt/status";
Dir::Cache "$PWD/apt/cache";
Dir::Etc::sourcelist "$PWD/apt/sources.list";
Dir::Etc::sourceparts "$PWD/apt/sources.list.d";
APT::Architecture "arm64";
APT::Architectures { "arm64"; };
APT::Sandbox::User "";
Acquire::Languages "none";
CONF
touch apt/status
export APT_CONFIG=$PWD/apt/apt.conf
[ -f apt/.updated ] || { apt-get -qq update && touch apt/.updated; }

have() { compgen -G "debs/$1/${2}_*.deb" > /dev/null; }
# Debian keeps a version on its mirrors until the next point release: a missing one is named and its pair is left out.
get() { (cd "debs/$1" && apt-get -qq download "$2") || echo "not on this mirror any more: $2" >&2; }

for name in linux-image-6.1.0-50-cloud-arm64 linux-image-6.1.0-56-cloud-arm64 linux-image-6.1.0-50-arm64 \
    linux-image-6.1.0-55-arm64 linux-image-6.1.0-56-arm64; do
    have misc "$name" || get misc "$name"
done
while read -r name version; do
    compgen -G "debs/misc/${name}_$(sed 's/:/%3a/' <<< "$version")_*.deb" > /dev/null || get misc "$name=$version"
done <<'LIST'
opensbi 1.5.1-1~bpo12+2
opensbi 1.6-1
seabios 1.16.2-1
seabios 1.16.3-2
ovmf 2022.11-6+deb12u1
ovmf 2022.11-6+deb12u2
qemu-efi-aarch64 2022.11-6+deb12u1
qemu-efi-aarch64 2022.11-6+deb12u2
u-boot-rpi 2023.01+dfsg-2+deb12u3
u-boot-rpi 2025.01-3+deb13u1
libssl3 3.0.20-1~deb12u2
libssl3 3.0.22-1~deb12u2
nginx 1.22.1-9+deb12u9
nginx 1.22.1-9+deb12u11
redis-tools 5:7.0.15-1~deb12u7
redis-tools 5:7.0.15-1~deb12u10
libxml2 2.9.14+dfsg-1.3~deb12u4
libxml2 2.9.14+dfsg-1.3~deb12u6
postgresql-15 15.18-0+deb12u1
postgresql-15 15.20-0+deb12u1
qemu-system-arm 1:7.2+dfsg-7+deb12u15
qemu-system-arm 1:7.2+dfsg-7+deb12u18+b3
LIST
if [ ! -f debs/.rootfs ]; then
    (cd debs/old && awk '{print $1"="$2}' "$here/rootfs.txt" | xargs -n 64 apt-get -qq download) || true
    (cd debs/new && awk '$2!=$3{print $1"="$3}' "$here/rootfs.txt" | xargs -n 64 apt-get -qq download) || true
    for name in $(awk '$2==$3{print $1}' "$here/rootfs.txt"); do ln -f debs/old/"$name"_*.deb debs/new/; done
    touch debs/.rootfs
fi
for source in lua5.4=5.4.4-3+deb12u1 lua5.4=5.4.7-1 mbedtls=2.28.3-1 lwip=2.1.3+dfsg1-2 lwip=2.2.1+dfsg1-1+deb13u1; do
    compgen -G "src/${source%%=*}_$(cut -d= -f2 <<< "$source" | sed 's/-[^-]*$//').orig.tar.*" > /dev/null ||
        (cd src && apt-get -qq source --download-only "$source")
done
wheel() {
    compgen -G "wheels/${1//-/_}-$2-*" > /dev/null ||
        python3 -m pip --quiet --disable-pip-version-check download --no-deps --only-binary=:all: --python-version 3.11 \
            --platform manylinux2014_aarch64 --platform manylinux_2_17_aarch64 --platform manylinux_2_27_aarch64 \
            --platform manylinux_2_28_aarch64 --dest wheels "$1==$2"
}
wheel numpy 2.4.5
wheel numpy 2.4.6
wheel pydantic-core 2.41.4
wheel pydantic-core 2.41.5
