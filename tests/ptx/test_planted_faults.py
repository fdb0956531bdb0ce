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


def finds(fault: str, source: str, kernel: str, pattern: str, replacement: str, run=attend_once) -> None:
    with planted(source, kernel, pattern, replacement), pytest.raises((ptx.Fault, AssertionError), match=fault):
        run()


def test_a_shuffle_for_too_few_lanes_is_found():
    pattern, replacement = r"shfl\.sync\.bfly\.b32\s+([^;]*), %r\d+;", r"shfl.sync.bfly.b32 \1, 0x0000ffff;"
    finds("is not in its own mask of lanes 0xffff", "attention_sm70", ATTENTION, pattern, replacement)


def test_a_shuffle_between_the_wrong_lanes_is_found():
    pattern = r"shfl\.sync\.bfly\.b32\s+(%r\d+\|%p\d+, %r\d+), (%r\d+)"
    finds("wrong attention", "attention_sm70", ATTENTION, pattern, r"shfl.sync.bfly.b32 \1, 16")


def test_a_lane_that_skips_a_shuffle_is_found():
    skip = "{ .reg .pred %skip; .reg .u32 %lane; mov.u32 %lane, %laneid; setp.eq.u32 %skip, %lane, 7; @!%skip"
    pattern, replacement = r"\n\s*(shfl\.sync\.bfly[^;]*;)", f"\n{skip} \\1 }}"
    finds(r"deadlock; threads .* wait at line", "attention_sm70", ATTENTION, pattern, replacement)


def test_a_load_beyond_the_codebook_is_found():
    pattern, replacement = r"ld\.global\.f32\s+(%f\d+), \[(%rd\d+)\]", r"ld.global.f32 \1, [\2+1048576]"
    fault = r"out of bounds: 4 bytes at 0x.* behind the end of"
    finds(fault, "nearest_code_pack", "pack_entries_kernel", pattern, replacement, search)


def test_a_misaligned_access_is_found():
    pattern, replacement = r"ld\.shared\.v4\.u32\s+([^;]*)\[(%r\w*)(\+\d+)?\]", r"ld.shared.v4.u32 \1[\2+2]"
    finds("misaligned: 16 bytes", "nearest_code_sm70", SCREEN, pattern, replacement, search)


def test_a_store_into_an_input_is_found():
    pattern = r"ld\.global\.f32\s+(%f\d+), \[(%rd\d+)\]"
    replacement = r"mov.f32 \1, 0f00000000; st.global.f32 [\2], \1"
    finds("which is read-only", "nearest_code", "nearest_code_finish_kernel", pattern, replacement, search)


def test_a_missing_store_is_found():
    fault = "memory that nobody has written: line"
    finds(fault, "attention_sm70", ATTENTION, r"st\.shared\.v4\.u32[^;]*;", "")
