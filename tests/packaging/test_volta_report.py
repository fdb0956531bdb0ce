"""benchmarks/results/volta_report.json: it describes the sources as they are, and says nothing bad of them."""

from __future__ import annotations

import json

import pytest

from benchmarks import sass, volta_report, volta_work

REPORT = json.loads(volta_report.REPORT.read_text())
KERNELS = REPORT["kernels"]
TENSOR_CORES = [name for name, kernel in KERNELS.items() if kernel["source"].endswith("_sm70.cu")]
needs_machine_code = pytest.mark.skipif(
    not REPORT["disassembler"].startswith("nvdisasm"), reason=f"disassembler {REPORT['disassembler']}"
)


def test_report_was_made_from_these_sources():
    assert REPORT["sources"] == {stem: digest for stem, (_, digest) in volta_report.sources().items()}, (
        "benchmarks/results/volta_report.json is stale: run `make volta-report` and commit it"
    )


def test_no_kernel_spills():
    for name, kernel in KERNELS.items():
        assert kernel["spill_store_bytes"] == kernel["spill_load_bytes"] == 0, name


def test_every_kernel_fits_a_multiprocessor_at_least_twice():
    for name, kernel in KERNELS.items():
        assert kernel["occupancy"]["blocks"] >= 2, name
        assert kernel["occupancy"]["warps"] * 32 * kernel["registers"] <= 65536, name
        assert kernel["occupancy"]["blocks"] * kernel["shared_bytes"] <= 96 << 10, name


@needs_machine_code
def test_kernels_that_claim_tensor_cores_use_them_in_their_loops():
    assert len(TENSOR_CORES) >= 13
    for name in TENSOR_CORES:
        loops = KERNELS[name]["instructions"]["loops"]
        assert max(loop.get("HMMA", 0) for loop in loops) >= 64, name
        assert all(work["instruction"] == "HMMA" for work in KERNELS[name]["work"]), name
        assert KERNELS[name]["work"], f"{name}: no work described in volta_work.py"


@needs_machine_code
def test_arithmetic_of_the_machine_code_is_what_is_claimed_and_little_more():
    described = [work for kernel in KERNELS.values() for work in kernel["work"]]
    assert len(described) > 30
    for work in described:
        # Causal work skips no half tile. The codes of one image fill half of a block's rows. In float32 each weight is
        # a polynomial of eight multiply-adds, which the claim, two products, leaves out.
        least = 0.45 if "causal" in work["case"] or "one image" in work["case"] else 0.75
        least *= 0.88 if work["instruction"] == "FFMA" else 1
        assert least <= work["useful_share"] <= 1, work["case"]


@needs_machine_code
def test_scores_and_weights_of_attention_stay_out_of_local_memory():
    for name, kernel in KERNELS.items():
        if name.startswith("attention"):
            assert not {"LDL", "STL"} & set(kernel["instructions"]["all"]), name


def test_roofline_follows_from_the_machine():
    work = next(work for work in KERNELS["attention_fwd_sm70_many_w88_kernel"]["work"] if "ViT" in work["case"])
    pairs = volta_work.BATCH * 16 * 257 * 257
    assert work["flops"] == 4 * 88 * pairs
    assert work["bytes"] == 4 * 2 * 88 * volta_work.BATCH * 16 * 257
    assert work["flops_per_output"] == 4 * 257
    assert work["roofline_us"] == pytest.approx(1e6 * max(work["flops"] / 112e12, work["bytes"] / 900e9), rel=1e-3)
    assert "nothing is measured" in REPORT["about"]


@pytest.mark.parametrize(
    ("registers", "shared", "threads", "blocks", "limited_by"),
    [
        (32, 0, 128, 16, "registers"),
        (24, 0, 128, 16, "warps"),
        (16, 0, 32, 32, "blocks"),
        (168, 0, 96, 4, "registers"),  # three warps in each quarter of the register file
        (169, 0, 96, 2, "registers"),  # two
        (255, 0, 128, 2, "registers"),
        (64, 32 << 10, 128, 3, "shared memory"),
        (64, (32 << 10) + 1, 128, 2, "shared memory"),
    ],
)
def test_occupancy_of_a_v100(registers, shared, threads, blocks, limited_by):
    found = volta_report.occupancy(registers, shared, threads)
    assert found["blocks"] == blocks
    assert found["limited_by"] == limited_by
    assert found["warps"] == blocks * threads // 32


# An outer loop around an inner one; a block behind the end that comes back into the middle; the branch to itself that
# ends every kernel.
LISTING = """
.text.first_kernel:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   LDS.U.128 R4, [R2] ;
        /*0020*/                   BRA.DIV `(.L_x_3) ;
.L_x_1:
        /*0030*/                   HMMA.884.F32.F32.STEP0 R8, R4.reuse.ROW, R6.reuse.COL, R8 ;
        /*0040*/                   HMMA.884.F32.F32.STEP1 R10, R4.reuse.ROW, R6.reuse.COL, R10 ;
        /*0050*/              @!P0 BRA `(.L_x_1) ;
.L_x_2:
        /*0060*/                   FFMA R3, R3, R4, R5 ;
        /*0070*/               @P1 BRA `(.L_x_0) ;
        /*0080*/                   EXIT ;
.L_x_3:
        /*0090*/                   SHFL.BFLY PT, R5, R118, 0x2, 0x1f ;
        /*00a0*/                   BRA `(.L_x_2) ;
.L_x_4:
        /*00b0*/                   BRA `(.L_x_4);
        /*00c0*/                   NOP;
.text.second_kernel:
        /*0000*/               @P0 EXIT ;
        /*0010*/                   EXIT ;
"""


def test_loops_of_a_listing():
    kernels = sass.parse(LISTING)
    assert list(kernels) == ["first_kernel", "second_kernel"]
    first = kernels["first_kernel"]
    assert sass.count(first) == {"all": 13, "HMMA": 2, "FFMA": 1, "LDS": 1, "SHFL": 1}
    outer, inner = sass.loops(first)
    assert sass.count(first, inner.own) == {"all": 3, "HMMA": 2}
    assert sass.count(first, outer.own) == {"all": 6, "FFMA": 1, "LDS": 1, "SHFL": 1}
    assert outer.members - outer.own == inner.members
    assert sass.loops(kernels["second_kernel"]) == []


def test_executed_arithmetic_adds_up_loops_and_what_is_outside_of_them():
    work = volta_work.Work("case", "HMMA", 10, 4, 1, (5, 0.5), 1, 1, 1)
    loops = [{"HMMA": 100}, {"FFMA": 99, "HMMA": 2}, {"HMMA": 40}, {"all": 7}]
    code = {"all": {"HMMA": 172}, "loops": loops}
    assert volta_report.executed_flops(work, code) == (30 + 5 * 100 + 0.5 * 40) * 512 * 40
    with pytest.raises(ValueError, match="case: expected 2 loops with HMMA, got 1"):
        volta_report.executed_flops(work, {"all": {}, "loops": loops[:2]})


@pytest.mark.slow
def test_making_the_report_again_gives_the_same():
    if objection := volta_report.cuda_wheels.Toolkit.find().objection():
        pytest.skip(objection)
    try:
        sass.find_nvdisasm(volta_report.CACHE)
    except sass.NoDisassembler as error:
        pytest.skip(str(error))
    assert json.loads(json.dumps(volta_report.make_report(volta_report.CACHE))) == REPORT
