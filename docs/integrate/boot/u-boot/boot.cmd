# Firmament for U-Boot: two slots, and one try for a new image.
#
# Compile:  mkimage -A arm64 -T script -C none -d boot.cmd boot.scr
# Needs:    CONFIG_CMD_SETEXPR, and an environment in two copies
#           (CONFIG_SYS_REDUNDAND_ENVIRONMENT), named in /etc/fw_env.config.
#
# BOOT_ORDER     slots in the order they are tried
# BOOT_A_LEFT    3: kept, starts are not counted; 1: armed, this is its one try; 0: never started
# BOOT_B_LEFT    the same for B
#
# Adapt `firmament_start`: it loads the kernel of slot ${firmament_label} from partition
# ${firmament_part} and starts it. It must return if the slot cannot be loaded.

setenv firmament_part_a 2
setenv firmament_part_b 3
setenv firmament_start 'setenv bootargs "console=${console} root=/dev/mmcblk0p${firmament_part} ro rootwait panic=5 firmament.slot=${firmament_label}"; load mmc 0:${firmament_part} ${kernel_addr_r} boot/Image && load mmc 0:${firmament_part} ${fdt_addr_r} boot/board.dtb && booti ${kernel_addr_r} - ${fdt_addr_r}'

test -n "${BOOT_ORDER}" || setenv BOOT_ORDER "A B"
test -n "${BOOT_A_LEFT}" || setenv BOOT_A_LEFT 3
test -n "${BOOT_B_LEFT}" || setenv BOOT_B_LEFT 3

setenv firmament_tried 0
for firmament_slot in ${BOOT_ORDER}; do
    if test "${firmament_slot}" = "B"; then
        setenv firmament_label b
        setenv firmament_part ${firmament_part_b}
        setenv firmament_left ${BOOT_B_LEFT}
    else
        setenv firmament_label a
        setenv firmament_part ${firmament_part_a}
        setenv firmament_left ${BOOT_A_LEFT}
    fi
    setenv firmament_go 0
    if test ${firmament_left} -ge 3; then
        setenv firmament_go 1
    elif test ${firmament_left} -gt 0; then
        # The try is spent on the storage before it is used: if that fails, it is not used.
        setexpr firmament_left ${firmament_left} - 1
        setenv BOOT_${firmament_slot}_LEFT ${firmament_left}
        if saveenv; then
            setenv firmament_go 1
        fi
    fi
    if test ${firmament_go} -eq 1; then
        setenv firmament_tried 1
        echo "Firmament: starting slot ${firmament_label}"
        run firmament_start
        echo "Firmament: slot ${firmament_label} could not be started"
    fi
done

# Without a slot that may be tried, the last one in the order is: before any trial it was the primary.
# A slot with 0 is not started otherwise, not even in need: it may hold half an image.
if test ${firmament_tried} -eq 0; then
    echo "Firmament: starting slot ${firmament_label} without a count"
    run firmament_start
fi
sleep 5
reset
