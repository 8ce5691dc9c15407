#!/usr/bin/env bash
# Install the Debian packages named as arguments, or all that the tests and the demo use.
# The one place that calls apt. Says what it installs; packages that are there are left alone.
set -euo pipefail
#   openssl             legacy signatures are compared with `openssl dgst`
#   softhsm2, opensc    hsm: keys are tested on SoftHSM2
#   e2fsprogs           the demo's ext4 image
#   curl                the README's story by hand
#   libubootenv-tool    real fw_printenv/fw_setenv
#   grub-common         real grub-editenv
#   systemd             systemd-analyze verify and security
#   faketime            metadata at other dates
#   tmux                the menu in a real terminal
#   groff-base          manual pages
#   mosquitto           a real MQTT broker and its own subscriber
#   python3-aiosmtpd    a real mail server, with TLS
#   chromium-headless-shell, fonts-*   the console is tested in a real browser, and photographed
#   tzdata              windows in device-local time
#   postgresql          the server's tests run on it, in clusters of their own (Debian's is not used)
#   swift-*, memcached  a real object store with the S3 API: payloads are tested on it as in a directory
#   nginx-light         a real nginx in front of the server
#   qemu-system-*, u-boot-*, grub-pc-bin   the boot scripts run in the real U-Boot and GRUB
ALL="
    ca-certificates
    chromium-headless-shell
    curl
    e2fsprogs
    faketime
    fonts-dejavu-core
    fonts-noto-core
    groff-base
    grub-common
    grub-pc-bin
    libubootenv-tool
    memcached
    mosquitto
    mosquitto-clients
    nginx-light
    opensc
    openssl
    postgresql
    python3-aiosmtpd
    qemu-system-arm
    qemu-system-x86
    softhsm2
    swift-account
    swift-container
    swift-object
    swift-proxy
    systemd
    tmux
    tzdata
    u-boot-qemu
    u-boot-tools
"
# npm fetches the OpenID provider that outside sign-in is tested against; one from elsewhere is as good.
command -v npm >/dev/null || ALL="$ALL npm"
[ $# -gt 0 ] || set -- $ALL
missing=()
for name in "$@"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null || true)" = installed ] || missing+=("$name")
done
[ ${#missing[@]} -gt 0 ] || exit 0
if [ "$(id -u)" -ne 0 ]; then
    echo "These Debian packages are missing; install them as root: ${missing[*]}" >&2
    exit 1
fi
echo "set-up: installing Debian packages: ${missing[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
apt-get -qq -o DPkg::Lock::Timeout=500 update
apt-get -qq -o DPkg::Lock::Timeout=500 install -y --no-install-recommends "${missing[@]}" >/dev/null
