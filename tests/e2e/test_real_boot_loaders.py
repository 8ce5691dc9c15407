"""The boot scripts in the real U-Boot and the real GRUB, in QEMU; skipped where those are not installed.

apt-get install qemu-system-arm u-boot-qemu u-boot-tools qemu-system-x86 grub-pc-bin grub-common e2fsprogs
"""

import os
import re
import select
import shutil
import struct
import subprocess
import time
from pathlib import Path

import pytest

from firmament.agent.bootctl import grub_env
from firmament.agent.bootctl.choice import Choice, Other, decide
from firmament.agent.bootctl.grub import LEFT, LEFT_OF, PRIMARY, decide_block
from firmament.agent.bootctl.uboot import variables_of
from firmament.agent.slots.port import Label

SCRIPTS = Path(__file__).parents[2] / "docs/integrate/boot"
UBOOT = Path("/usr/lib/u-boot/qemu_arm64/u-boot.bin")
GRUB = Path("/usr/lib/grub/i386-pc")
LIMIT_S = 120  # emulated, and the machine may be busy
MIB = 1024 * 1024


def missing(*needed):
    return [str(item) for item in needed if not (shutil.which(item) if isinstance(item, str) else item.exists())]


def play(argv, *, until, answers=None):
    """Run QEMU until its serial line says `until`; answer each prompt of `answers` in turn."""
    prompts = list(answers or [])
    with subprocess.Popen(
        [str(word) for word in argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as machine:
        os.set_blocking(machine.stdout.fileno(), False)
        seen, position, deadline = "", 0, time.monotonic() + LIMIT_S
        try:
            while not re.search(until, seen[position:]) or prompts:
                assert time.monotonic() < deadline, seen[-2000:]
                select.select([machine.stdout], [], [], 0.5)
                seen += (machine.stdout.read() or b"").decode("latin-1")
                if prompts and prompts[0][0] in seen[position:]:
                    position = len(seen)
                    machine.stdin.write(prompts.pop(0)[1].encode() + b"\n")
                    machine.stdin.flush()
                assert machine.poll() is None or re.search(until, seen[position:]), seen[-2000:]
        finally:
            machine.kill()
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen).splitlines()]
    return [line for line in lines if re.fullmatch(r"START \w|SAVED [\w ,]+|RESET", line)]


# --- U-Boot ----------------------------------------------------------------------------------

needs_uboot = pytest.mark.skipif(
    bool(missing("qemu-system-aarch64", "mkimage", UBOOT)), reason="QEMU or U-Boot for it is not installed"
)


def uboot(tmp_path, choice, *, save):
    script = (SCRIPTS / "u-boot/boot.cmd").read_text()
    script = re.sub(r"setenv firmament_start '.*'", "setenv firmament_start 'echo START ${firmament_label}'", script)
    script = script.replace("sleep 5\nreset", "echo RESET")
    if save:  # this build cannot write its flash: pretend, and show what would be saved
        script = script.replace("if saveenv;", "if echo SAVED ${BOOT_ORDER},${BOOT_A_LEFT},${BOOT_B_LEFT};")
    (tmp_path / "boot.cmd").write_text(script)
    subprocess.run(
        ["mkimage", "-A", "arm64", "-T", "script", "-C", "none", "-d", tmp_path / "boot.cmd", tmp_path / "boot.scr"],
        check=True,
        capture_output=True,
    )
    loader = f"loader,file={tmp_path}/boot.scr,addr=0x44000000,force-raw=on"
    argv = ["qemu-system-aarch64", "-M", "virt", "-cpu", "cortex-a57", "-accel", "tcg", "-m", "256", "-nographic"]
    sets = [("=> ", f'setenv {name} "{value.decode()}"') for name, value in variables_of(choice).items()]
    answers = [("Hit any key", ""), *sets, ("=> ", "source 0x44000000")]
    return play([*argv, "-bios", UBOOT, "-device", loader], until=r"RESET[\r\n]", answers=answers)


@pytest.mark.slow
@needs_uboot
@pytest.mark.parametrize(
    "choice", [Choice(Label.A, other) for other in Other] + [Choice(Label.B, Other.ARMED)], ids=str
)
def test_real_uboot_decides_as_the_model_and_falls_back(tmp_path, choice):
    """`firmament_start` returns, as if no slot could be loaded: the whole order is seen."""
    first, after = decide(choice)
    expected = [f"START {first}"]
    if after != choice:
        left = variables_of(choice) | {f"BOOT_{first.upper()}_LEFT": b"0"}
        expected.insert(0, "SAVED " + ",".join(left[f"BOOT_{x}"].decode() for x in ("ORDER", "A_LEFT", "B_LEFT")))
    if choice.other is not Other.SPENT:
        expected.append(f"START {first.other}")
    assert uboot(tmp_path, choice, save=True) == [*expected, "RESET"]


@pytest.mark.slow
@needs_uboot
def test_real_uboot_that_cannot_save_does_not_try(tmp_path):
    assert uboot(tmp_path, Choice(Label.A, Other.ARMED), save=False) == ["START a", "RESET"]


# --- GRUB --------------------------------------------------------------------------------------

needs_grub = pytest.mark.skipif(
    bool(missing("qemu-system-x86_64", "grub-mkimage", "mke2fs", "debugfs", GRUB)),
    reason="QEMU or GRUB for PCs is not installed",
)
MODULES = (
    "biosdisk part_msdos ext2 normal test echo serial terminal loadenv search search_label linux halt sleep reboot"
)


def grub_disk(tmp_path, block):
    """A disk with GRUB in its boot sector, and one ext4 partition that holds the scripts and the block."""
    grub = tmp_path / "root/boot/grub"
    grub.mkdir(parents=True)
    shutil.copytree(
        GRUB, grub / "i386-pc", ignore=lambda _, names: [n for n in names if not n.endswith((".mod", ".lst"))]
    )
    script = (SCRIPTS / "grub/firmament.cfg").read_text()
    script = re.sub(
        r"function firmament_start \{.*?\n\}\n",
        "function firmament_start {\n echo START $1\n}\n",
        script,
        flags=re.DOTALL,
    )
    (grub / "firmament.cfg").write_text(script.replace("sleep 5\nreboot", "echo RESET"))
    (grub / "grub.cfg").write_text("serial --unit=0\nterminal_output serial\nsource $prefix/firmament.cfg\nsleep 600\n")
    (grub / "grubenv").write_bytes(block)
    core, part, disk = tmp_path / "core.img", tmp_path / "part.img", tmp_path / "disk.img"
    make = ["grub-mkimage", "-O", "i386-pc", "-o", core, "-p", "(hd0,msdos1)/boot/grub", *MODULES.split()]
    subprocess.run(make, check=True, capture_output=True)
    with part.open("wb") as file:
        file.truncate(30 * MIB)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", tmp_path / "root", part], check=True)
    with disk.open("wb") as file:
        file.write((GRUB / "boot.img").read_bytes()[:440])
        file.seek(446)
        file.write(struct.pack("<B3sB3sII", 0x80, b"\x20\x21\x00", 0x83, b"\xfe\xff\xff", 2048, 30 * 2048))
        file.seek(510)
        file.write(b"\x55\xaa" + core.read_bytes())
        file.seek(MIB)
        file.write(part.read_bytes())
    return disk


def block_on(disk, tmp_path):
    (tmp_path / "part.img").write_bytes(disk.read_bytes()[MIB:])
    return subprocess.run(
        ["debugfs", "-R", "cat /boot/grub/grubenv", tmp_path / "part.img"], check=True, capture_output=True
    ).stdout


@pytest.mark.slow
@needs_grub
@pytest.mark.parametrize(
    "choice", [Choice(Label.A, Other.ARMED), Choice(Label.B, Other.WHOLE), Choice(Label.A, Other.SPENT)], ids=str
)
def test_real_grub_decides_as_the_model_and_changes_one_byte(tmp_path, choice):
    block = grub_env.set_variable(grub_env.empty(), PRIMARY, choice.primary.encode())
    block = grub_env.set_variable(block, LEFT, LEFT_OF[choice.other])
    disk = grub_disk(tmp_path, block)
    argv = [
        "qemu-system-x86_64",
        "-accel",
        "tcg",
        "-m",
        "64",
        "-display",
        "none",
        "-serial",
        "stdio",
        "-monitor",
        "none",
    ]
    said = play([*argv, "-drive", f"file={disk},format=raw,cache=writethrough"], until=r"RESET[\r\n]")
    label, after = decide_block(block)
    fallback = [] if choice.other is Other.SPENT else [f"START {label.other}"]
    assert said == [f"START {label}", *fallback, "RESET"]
    found = block_on(disk, tmp_path)
    assert found == after
    assert sum(a != b for a, b in zip(block, found, strict=True)) == (choice.other is Other.ARMED)
