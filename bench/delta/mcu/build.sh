#!/usr/bin/env bash
# Build one release of the corpus firmware: build.sh SOURCES RELEASE LUA LWIP OUT.bin
# SOURCES holds the unpacked lua-*, lwip-* and mbedtls-* trees. Needs gcc-arm-none-eabi.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "$1"; release=$2 lua=lua-$3 lwip=lwip-$4 out=$5 tls=mbedtls-2.28.3
objects=$(mktemp -d); trap 'rm -rf "$objects"' EXIT
cpu=(-mcpu=cortex-m4 -mthumb -mfpu=fpv4-sp-d16 -mfloat-abi=hard)
{
    for file in "$lua"/src/*.c; do case $file in */lua.c | */luac.c) ;; *) echo "$file lua_$(basename "$file" .c).o" ;; esac; done
    find "$lwip/src/core" "$lwip/src/netif" -name '*.c' | grep -vE 'ppp|slip|zepif|6lowpan|bridgeif|rfc7668' | sort |
        while read -r file; do echo "$file lwip_$(basename "$file" .c).o"; done
    for file in "$tls"/library/*.c; do
        case $file in */net_sockets.c | */timing.c) ;; *) echo "$file tls_$(basename "$file" .c).o" ;; esac
    done
    echo "$here/firmware.c firmware.o"
} | xargs -P 2 -L 1 bash -c 'arm-none-eabi-gcc '"${cpu[*]}"' -Os -std=gnu11 -w -ffunction-sections -fdata-sections \
    -ffile-prefix-map='"$here"'=. -DRELEASE='"$release"' -DRELEASE_TEXT=\"'"$release"'\" \
    "-DMBEDTLS_CONFIG_FILE=<tls_config.h>" -I'"$here"' -I'"$lua"'/src -I'"$lwip"'/src/include -I'"$tls"'/include -c "$0" -o '"$objects"'/"$1"'
arm-none-eabi-gcc "${cpu[@]}" -Wl,--gc-sections -T "$here/flash.ld" -nostartfiles --specs=nano.specs -u _printf_float \
    -o "$objects/firmware.elf" $(ls "$objects"/*.o) -lm
arm-none-eabi-objcopy -O binary "$objects/firmware.elf" "$out"
