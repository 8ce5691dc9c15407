"""Byte compatibility with the real tools of Debian, both ways, and the boot scripts run for real."""

import itertools
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from firmament.agent.bootctl import grub_env
from firmament.agent.bootctl.choice import Choice, Other, decide
from firmament.agent.bootctl.grub import decide_block
from firmament.agent.bootctl.grub_env import GrubEnvironment
from firmament.agent.bootctl.uboot import UBootStore, decide_variables, variables_of
from firmament.agent.bootctl.uboot_env import UBootEnvironment, encode_copy, parse_config
from firmament.agent.slots.port import Label
from firmament.durable import RealDisk
from firmament.errors import BootControlError, SettingError

SCRIPTS = Path(__file__).parents[2] / "docs/integrate/boot"
SIZE = 0x400
CHOICES = [Choice(primary, other) for primary in Label for other in Other]


def run(*argv, check=True, **options):
    return subprocess.run([str(word) for word in argv], capture_output=True, check=check, timeout=60, **options)


# --- U-Boot: fw_printenv, fw_setenv ----------------------------------------------------------

needs_uboot = pytest.mark.skipif(shutil.which("fw_setenv") is None, reason="libubootenv-tool is not installed")


class Env:
    def __init__(self, tmp_path, copies):
        self.file = tmp_path / "env.bin"
        self.config = tmp_path / "fw_env.config"
        offsets = (64, 64 + SIZE)[:copies]
        self.config.write_text(
            f"# test\n{''.join(f'{self.file} {offset:#x} {SIZE:#x}' + chr(10) for offset in offsets)}"
        )
        first = encode_copy({"bootcmd": b"run x"}, length_bytes=SIZE, flags=0 if copies == 2 else None)
        self.file.write_bytes(b"\xee" * 64 + first + b"\xff" * SIZE + b"\xee" * 64)
        self.ours = UBootEnvironment(RealDisk(), parse_config(self.config.read_text()), accept_single_copy=True)

    def get(self):
        out = run("fw_printenv", "-c", self.config).stdout
        return dict(line.split(b"=", 1) for line in out.splitlines())

    def set(self, *words):
        run("fw_setenv", "-c", self.config, *words)


@pytest.fixture(params=[1, 2], ids=["single", "redundant"])
def env(request, tmp_path):
    return Env(tmp_path, request.param)


@needs_uboot
def test_what_we_write_fw_printenv_reads(env):
    for turn in range(260):  # through the wrap of the flags byte
        env.ours.write({"bootcmd": b"run x", "n": b"%d" % turn, "weird": b"a=b \xc3\xa4 '\"\\"})
        if turn % 20 == 0 or turn > 250:
            assert env.get() == {b"bootcmd": b"run x", b"n": b"%d" % turn, b"weird": b"a=b \xc3\xa4 '\"\\"}


@needs_uboot
def test_what_fw_setenv_writes_we_read(env):
    for turn in range(6):
        env.set("n", str(turn))
        env.set("tail", "x" * turn)
        assert env.ours.read() == {"bootcmd": b"run x", "n": b"%d" % turn, "tail": b"x" * turn}
    env.set("n")
    assert "n" not in env.ours.read()


@needs_uboot
def test_both_write_in_turns_and_touch_nothing_else(env):
    for turn in range(12):
        if turn % 2:
            env.set("from_them", str(turn))
        else:
            env.ours.write({**env.ours.read(), "from_us": b"%d" % turn})
        assert {k.encode(): v for k, v in env.ours.read().items()} == env.get()
    data = env.file.read_bytes()
    assert data[:64] == data[-64:] == b"\xee" * 64


@needs_uboot
def test_both_choose_the_same_copy(tmp_path):
    env = Env(tmp_path, 2)
    for flags in itertools.product([0, 1, 2, 127, 128, 254, 255], repeat=2):
        for broken in ((), (0,), (1,)):
            copies = [bytearray(encode_copy({"who": b"%d" % n}, length_bytes=SIZE, flags=flags[n])) for n in range(2)]
            for index in broken:
                copies[index][100] ^= 1
            env.file.write_bytes(b"\xee" * 64 + copies[0] + copies[1])
            assert env.ours.read()["who"] == env.get()[b"who"], (flags, broken)


@needs_uboot
@pytest.mark.parametrize("choice", CHOICES)
def test_a_choice_through_the_real_tool(env, choice):
    UBootStore(env.ours).store(choice)
    for name, value in env.get().items():
        env.set(name.decode(), value.decode())
    assert UBootStore(env.ours).load() == choice


@needs_uboot
def test_a_single_copy_needs_consent(tmp_path):
    env = Env(tmp_path, 1)
    with pytest.raises(SettingError):
        UBootEnvironment(RealDisk(), parse_config(env.config.read_text()))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing\n",
        "/e 0\n",
        "/e x 0x400\n",
        "e 0 0x400\n",
        "/e -1 0x400\n",
        "/e 0 0x1\n",
        "/e 0 0xffffffffff\n",
        "/dev/mtd0 0 0x400\n",
        "/e 0 0x400\n/e 0x200 0x400\n",
        "/e 0 0x400\n/e 0x400 0x800\n",
        "/e 0 400\n/e 400 400\n",
        "/e 0 400\n/f 0 400\n/g 0 400\n",
    ],
)
def test_a_config_that_cannot_be_meant_is_refused(text):
    with pytest.raises(SettingError):
        parse_config(text)


@needs_uboot
def test_an_environment_past_the_end_is_told(tmp_path):
    env = Env(tmp_path, 2)
    env.file.write_bytes(env.file.read_bytes()[:1000])
    with pytest.raises(BootControlError):
        env.ours.read()


# --- GRUB: grub-editenv ----------------------------------------------------------------------

needs_grub = pytest.mark.skipif(shutil.which("grub-editenv") is None, reason="grub-common is not installed")
SETS = [
    ("firmament_primary", "a"),
    ("firmament_left", "1"),
    ("saved_entry", "Debian GNU/Linux>1"),
    ("firmament_left", "0"),
    ("with_escape", "back\\slash and\nnewline"),
    ("saved_entry", "0"),
    ("saved_entry", "a much longer value than before " * 3),
    ("empty", ""),
    ("hash", "#1#"),
    ("with_escape", "\\"),
    ("firmament_primary", "b"),
]


@needs_grub
def test_our_empty_block_is_grubs(tmp_path):
    run("grub-editenv", tmp_path / "env", "create")
    assert (tmp_path / "env").read_bytes() == grub_env.empty()


@needs_grub
def test_our_block_is_grubs_byte_for_byte_after_every_change(tmp_path):
    path = tmp_path / "env"
    run("grub-editenv", path, "create")
    ours = grub_env.empty()
    for name, value in SETS:
        run("grub-editenv", path, "set", f"{name}={value}")
        ours = grub_env.set_variable(ours, name, value.encode())
        assert ours == path.read_bytes(), (name, value)
        assert grub_env.decode(ours)[name] == value.encode()


@needs_grub
def test_what_we_write_grub_lists(tmp_path):
    path = tmp_path / "env"
    environment = GrubEnvironment(RealDisk(), path)
    environment.prepare({"firmament_primary": b"a", "firmament_left": b"9"})
    environment.set_character("firmament_left", b"1")
    assert run("grub-editenv", path, "list").stdout == b"firmament_primary=a\nfirmament_left=1\n"
    run("grub-editenv", path, "unset", "firmament_left")
    environment.prepare({"firmament_left": b"9"})
    assert grub_env.decode(path.read_bytes()) == {"firmament_primary": b"a", "firmament_left": b"9"}


@needs_grub
def test_both_are_full_at_the_same_point(tmp_path):
    path = tmp_path / "env"
    for length in range(895, 930):
        run("grub-editenv", path, "create")
        theirs = run("grub-editenv", path, "set", f"name={'x' * length}", check=False).returncode == 0
        try:
            block = grub_env.set_variable(grub_env.empty(), "name", b"x" * length)
        except BootControlError:
            block = None
        assert (block is not None) == theirs, length
        assert block is None or block == path.read_bytes()


# --- the scripts -------------------------------------------------------------------------------
# U-Boot's and GRUB's scripts are small subsets of the shell's language. bash runs them with
# functions in place of the boot loaders' commands.

UBOOT_COMMANDS = r"""
setenv() { local name=$1; shift; printf -v "$name" '%s' "$*"; }
setexpr() { printf -v "$1" '%s' "$(( $2 $3 $4 ))"; }
saveenv() {
    [ "$SAVES" = 1 ] || return 1
    echo "save $BOOT_ORDER,$BOOT_A_LEFT,$BOOT_B_LEFT"
}
run() { echo "start $firmament_label $firmament_part"; case " $BROKEN " in *" $firmament_label "*) return 1;; esac; exit 0; }
sleep() { :; }
reset() { echo reset; exit 0; }
echo() { case "$1" in Firmament:*) ;; *) builtin echo "$@";; esac; }
"""
GRUB_COMMANDS = r"""
set() { printf -v "${1%%=*}" '%s' "${1#*=}"; }
load_env() { [ -z "$PRIMARY" ] || firmament_primary=$PRIMARY; [ -z "$LEFT" ] || firmament_left=$LEFT; }
save_env() { [ "$SAVES" = 1 ] || return 1; echo "save $1=$firmament_left"; }
search() { case " $BROKEN " in *" ${4#slot-} "*) return 1;; esac; }
linux() { echo "start ${5#firmament.slot=}"; }
initrd() { :; }
boot() { exit 0; }
sleep() { :; }
reboot() { echo reset; exit 0; }
echo() { case "$1" in Firmament:*) ;; *) builtin echo "$@";; esac; }
"""


def play(commands, script, **variables):
    text = commands + script.read_text().replace("function firmament_start {", "firmament_start() {")
    done = run("bash", "-c", text, env={"PATH": os.environ["PATH"], **variables}, check=False)
    return done.stdout.decode().splitlines()


def test_boot_cmd_decides_as_the_model():
    orders = ["", "A B", "B A", "A", "B"]
    for order, a, b in itertools.product(orders, ["", "0", "1", "2", "3", "9"], ["", "0", "1", "3"]):
        variables = {"BOOT_ORDER": order, "BOOT_A_LEFT": a, "BOOT_B_LEFT": b}
        given = {name: value.encode() for name, value in variables.items() if value}
        label, after = decide_variables(given)
        lines = play(UBOOT_COMMANDS, SCRIPTS / "u-boot/boot.cmd", SAVES="1", **variables)
        left = ",".join(
            after.get(name, default).decode()
            for name, default in zip(("BOOT_ORDER", "BOOT_A_LEFT", "BOOT_B_LEFT"), (b"A B", b"3", b"3"), strict=True)
        )
        saved = [f"save {left}"] if after != given else []
        assert lines == [*saved, f"start {label} {'2' if label == 'a' else '3'}"], variables


@pytest.mark.parametrize("choice", CHOICES)
def test_boot_cmd_starts_nothing_unsaved_and_falls_back(choice):
    variables = {name: value.decode() for name, value in variables_of(choice).items()}
    script = SCRIPTS / "u-boot/boot.cmd"
    unsaved = play(UBOOT_COMMANDS, script, SAVES="0", **variables)
    assert unsaved == [f"start {choice.primary} {'2' if choice.primary == 'a' else '3'}"]
    first = decide(choice)[0]
    broken = play(UBOOT_COMMANDS, script, SAVES="1", BROKEN=first, **variables)
    started = [line.split()[1] for line in broken if line.startswith("start")]
    # A slot that was spent is not started even if the primary cannot be loaded.
    assert started == ([first] if choice.other is Other.SPENT else [first, first.other])
    assert ("reset" in broken) == (choice.other is Other.SPENT)


def test_firmament_cfg_decides_as_the_model():
    for primary, left in itertools.product(["", "a", "b", "x"], ["", "0", "1", "9", "5"]):
        block = grub_env.empty()
        for name, value in (("firmament_primary", primary), ("firmament_left", left)):
            block = grub_env.set_variable(block, name, value.encode()) if value else block
        label, after = decide_block(block)
        lines = play(GRUB_COMMANDS, SCRIPTS / "grub/firmament.cfg", SAVES="1", PRIMARY=primary, LEFT=left)
        saved = ["save firmament_left=0"] if after != block else []
        assert lines == [*saved, f"start {label}"], (primary, left)


@pytest.mark.parametrize("choice", CHOICES)
def test_firmament_cfg_starts_nothing_unsaved_and_falls_back(choice):
    left = {Other.WHOLE: "9", Other.ARMED: "1", Other.SPENT: "0"}[choice.other]
    script = SCRIPTS / "grub/firmament.cfg"
    assert play(GRUB_COMMANDS, script, SAVES="0", PRIMARY=choice.primary, LEFT=left) == [f"start {choice.primary}"]
    first = decide(choice)[0]
    broken = play(GRUB_COMMANDS, script, SAVES="1", PRIMARY=choice.primary, LEFT=left, BROKEN=first)
    started = [line.split()[1] for line in broken if line.startswith("start")]
    assert started == ([] if choice.other is Other.SPENT else [first.other])
    assert "reset" in broken or started


@needs_grub
def test_grub_accepts_the_scripts_syntax():
    run("grub-script-check", SCRIPTS / "grub/firmament.cfg")
