"""Faults planted into the PTX of the kernels are found: by a check of the machine, or by wrong results."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import pytest
import torch

from seed_fast.ops.backends import attention, nearest_code
from tests.ptx.machine import call, ptx
from tests.ptx.test_attention import Case as AttentionCase
from tests.ptx.test_attention import attend, random
from tests.ptx.test_nearest_code import exact, generator

SCREEN, ATTENTION = "nearest_code_fwd_sm70_kernel", "attention_fwd_sm70_keys32_w64_kernel"


@contextlib.contextmanager
def planted(source: str, kernel: str, pattern: str, replacement: str, which: int = 0) -> Iterator[None]:
    """The `which`-th match of `pattern` in a kernel's text is replaced."""
    text = ptx.image(source, 70)
    begin = text.index(f".entry {kernel}(")
    end = text.find(".entry ", begin + 1) % (len(text) + 1)
    found = list(re.finditer(pattern, text[begin:end]))
    assert found, f"no {pattern} in {kernel}"
    match = found[which % len(found)]
    start, stop = begin + match.start(), begin + match.end()
    ptx.replace_image(source, 70, text[:start] + match.expand(replacement) + text[stop:])
    try:
        yield
    finally:
        ptx.replace_image(source, 70, text)


def search() -> None:
    draw = generator(0)
    z, codebook = draw(70, 40), draw(300, 40)
    ids, _ = call(nearest_code.cuda, z, codebook, None, False, multiprocessors=1)
    assert torch.equal(ids, exact(z, codebook)[0]), "wrong ids"


def attend_once() -> None:
    case = AttentionCase("", *random(torch.float16, 1, 32, 32, 1, 64))
    got = call(attention.cuda, case.q, case.k, case.v, False, 0.125).double()
    truth, plain = attend(case, torch.float64), attend(case, torch.float16).double()
    assert (got - truth).abs().max() <= 2 * (plain - truth).abs().max(), "wrong attention"


def test_without_a_fault_nothing_is_found():
    search()
    attend_once()


@pytest.mark.parametrize("which", [0, 1])
def test_a_removed_barrier_is_found(which):
    with planted("attention_sm70", ATTENTION, r"bar\.sync\s+0;", "", which), pytest.raises(ptx.Fault) as caught:
        attend_once()
    assert re.search(rf"kernel {ATTENTION}, line \d+ `.*`, block \(.*\), thread \d+: ", str(caught.value))
    assert re.search("race: .* line|nobody has written", str(caught.value))


@pytest.mark.parametrize("which", [0, -1])
def test_swapped_registers_of_a_fragment_are_found(which):
    swap = (r"(mma\.sync[^;]*\}, \{)(%r\d+), (%r\d+)\}", r"\1\3, \2}")
    with planted("attention_sm70", ATTENTION, *swap, which), pytest.raises(AssertionError, match="wrong attention"):
        attend_once()


def test_a_shuffle_for_too_few_lanes_is_found():
    # The mask is a register: the shuffle gets one of half the warp instead.
    shuffle = (r"shfl\.sync\.bfly\.b32\s+([^;]*), %r\d+;", r"shfl.sync.bfly.b32 \1, 0x0000ffff;")
    with (
        planted("attention_sm70", ATTENTION, *shuffle),
        pytest.raises(ptx.Fault, match=r"is not in its own mask of lanes 0xffff"),
    ):
        attend_once()


def test_a_shuffle_between_the_wrong_lanes_is_found():
    shuffle = (r"shfl\.sync\.bfly\.b32\s+(%r\d+\|%p\d+, %r\d+), (%r\d+)", r"shfl.sync.bfly.b32 \1, 16")
    with planted("attention_sm70", ATTENTION, *shuffle), pytest.raises(AssertionError, match="wrong attention"):
        attend_once()


def test_a_lane_that_skips_a_shuffle_is_found():
    closed = (
        r"\n\s*(shfl\.sync\.bfly[^;]*;)",
        "\n{ .reg .u32 %lane; .reg .pred %odd; mov.u32 %lane, %laneid; setp.eq.u32 %odd, %lane, 7;\n@!%odd \\1 }",
    )
    with (
        planted("attention_sm70", ATTENTION, *closed),
        pytest.raises(ptx.Fault, match=r"deadlock; threads .* wait at line"),
    ):
        attend_once()


def test_a_load_beyond_the_codebook_is_found():
    with (
        planted(
            "nearest_code_pack",
            "pack_entries_kernel",
            r"ld\.global\.f32\s+(%f\d+), \[(%rd\d+)\]",
            r"ld.global.f32 \1, [\2+1048576]",
        ),
        pytest.raises(ptx.Fault, match="out of bounds: 4 bytes at 0x.* behind the end of"),
    ):
        search()


def test_a_misaligned_access_is_found():
    with (
        planted(
            "nearest_code_sm70",
            SCREEN,
            r"ld\.shared\.v4\.u32\s+([^;]*)\[(%r\w*)(\+\d+)?\]",
            r"ld.shared.v4.u32 \1[\2+2]",
        ),
        pytest.raises(ptx.Fault, match="misaligned: 16 bytes"),
    ):
        search()


def test_a_store_into_an_input_is_found():
    with (
        planted(
            "nearest_code",
            "nearest_code_finish_kernel",
            r"ld\.global\.f32\s+(%f\d+), \[(%rd\d+)\]",
            r"mov.f32 \1, 0f00000000; st.global.f32 [\2], \1",
        ),
        pytest.raises(ptx.Fault, match="which is read-only"),
    ):
        search()


def test_a_missing_store_is_found():
    with (
        planted("attention_sm70", ATTENTION, r"st\.shared\.v4\.u32[^;]*;", ""),
        pytest.raises(ptx.Fault, match="memory that nobody has written: line"),
    ):
        attend_once()
