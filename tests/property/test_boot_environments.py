"""Boot environments as bytes: what is written is read, and whatever is read raises only our errors."""

from hypothesis import example, given
from hypothesis import strategies as st

from firmament.agent.bootctl import grub_env, record
from firmament.agent.bootctl.choice import Choice, Other, decide
from firmament.agent.bootctl.grub import choice_of as grub_choice
from firmament.agent.bootctl.grub import decide_block
from firmament.agent.bootctl.uboot import choice_of, decide_variables, variables_of
from firmament.agent.bootctl.uboot_env import decode_copy, encode_copy, newer, parse_config
from firmament.agent.slots.port import Label
from firmament.errors import BootControlError, FirmamentError

LENGTH = 512
choices = st.builds(Choice, st.sampled_from(Label), st.sampled_from(Other))
names = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="="), min_size=1, max_size=12)
values = st.binary(max_size=20).map(lambda value: value.replace(b"\0", b"?"))
variables = st.dictionaries(names, values, max_size=8)
counts = st.sampled_from([b"", b"0", b"1", b"2", b"3", b"9", b"-1", b"x", b"9" * 5000, b"\xb2"])
grub_names = st.text(st.characters(min_codepoint=97, max_codepoint=122), min_size=1, max_size=12)


@given(variables, st.none() | st.integers(0, 255))
def test_a_copy_of_ubootes_environment_round_trips(values, flags):
    data = encode_copy(values, length_bytes=LENGTH, flags=flags)
    assert len(data) == LENGTH
    assert decode_copy(data, redundant=flags is not None) == (values, flags or 0)


@given(variables, st.integers(0, 255), st.integers(0, LENGTH - 1), st.integers(1, 255))
def test_a_damaged_copy_is_never_read(values, flags, where, change):
    data = bytearray(encode_copy(values, length_bytes=LENGTH, flags=flags))
    data[where] ^= change
    found = decode_copy(bytes(data), redundant=True)
    assert found is None or (where == 4 and found[0] == values)  # the CRC does not cover the flags


@given(st.binary(min_size=64, max_size=LENGTH), st.booleans())
def test_any_bytes_as_an_environment(data, redundant):
    decode_copy(data, redundant=redundant)


@given(st.integers(0, 255))
def test_the_next_flags_are_always_newer(flags):
    assert newer(flags, (flags + 1) % 256) == 1
    assert newer((flags + 1) % 256, flags) == 0


@given(variables, choices)
def test_a_choice_in_uboots_variables(others, choice):
    mixed = {**others, **variables_of(choice)}
    assert choice_of(mixed) == choice
    label, after = decide_variables(mixed)
    assert (label, choice_of(after)) == decide(choice)
    assert {**after, **variables_of(choice)} == mixed  # nothing else was touched


@given(st.sampled_from([b"", b"A B", b"B A", b"A", b"B", b"C", b"  ", b"B B B", b"\xff"]), counts, counts)
def test_any_variables_start_something(order, a, b):
    given_variables = {"BOOT_ORDER": order, "BOOT_A_LEFT": a, "BOOT_B_LEFT": b}
    assert decide_variables(given_variables)[0] in set(Label)
    choice_of(given_variables)


@given(
    st.text(max_size=200)
    | st.lists(st.sampled_from(["/e", "0", "0x400", "400", "-1", "#", "\n", "mtd0"])).map(" ".join)
)
def test_any_text_as_fw_env_config(text):
    try:
        places = parse_config(text)
    except FirmamentError:
        return
    assert 1 <= len(places) <= 2


@given(st.lists(st.tuples(grub_names, values), max_size=10))
@example([("a", b"\\\n\\"), ("a", b"\n"), ("b", b"#")])
def test_grubs_block_holds_what_was_set(sets):
    block, expected = grub_env.empty(), {}
    for name, value in sets:
        block = grub_env.set_variable(block, name, value)
        expected[name] = value
        assert len(block) == grub_env.LENGTH_BYTES
        assert grub_env.decode(block) == expected


@given(
    st.binary(max_size=1100) | st.binary(max_size=999).map(lambda tail: (grub_env.SIGNATURE + tail).ljust(1024, b"#"))
)
def test_any_bytes_as_a_block(data):
    try:
        label, after = decide_block(data)
    except BootControlError:
        return
    assert label in set(Label)
    assert sum(a != b for a, b in zip(data, after, strict=True)) <= 1
    assert decide_block(after)[0] is grub_choice(after).primary


@given(st.binary(max_size=200) | st.builds(record.encode, choices, st.integers(0, 2**63 - 1)))
def test_any_bytes_as_a_record(data):
    try:
        choice, generation = record.decode(data)
    except FirmamentError:
        return
    assert record.decode(record.encode(choice, generation)) == (choice, generation)
