// Every check of the interpreter reports the defect that it is meant for with the right message, and accepts a correct
// variant of the same code.
#include "snippet.h"

using ptx::testing::fault;
using ptx::testing::run;
using ptx::testing::Snippet;

namespace {

const char* const kTile = ".shared .align 16 .b8 tile[512];\n";
// Each of 64 threads writes its word of `tile`, executes the PTX text `between`, and reads the word of a thread of the
// other warp.
Snippet exchange(const std::string& between) {
  return {kTile,
          "shl.b32 %r5, %r0, 2;\nmov.u32 %r6, tile;\nadd.s32 %r7, %r6, %r5;\nst.shared.u32 [%r7], %r0;\n" + between +
              "xor.b32 %r5, %r5, 128;\nadd.s32 %r7, %r6, %r5;\nld.shared.u32 %r8, [%r7];\nst.global.u32 [%rd2], %r8;",
          64};
}

}  // namespace

TEST(a_barrier_orders_shared_memory_and_its_absence_is_a_race) {
  for (unsigned seed = 0; seed < 20; ++seed) {
    Snippet good = exchange("bar.sync 0;\n"), bad = exchange("");
    good.seed = bad.seed = seed;
    CHECK_EQUAL(run(good)[5], uint64_t{37});
    const std::string message = fault(bad);
    // Without the barrier the word is read before, or concurrently with, its write, depending on the order of warps.
    CHECK(message.find("race: ") != std::string::npos || message.find("nobody has written") != std::string::npos);
    CHECK_FAULT(message, "kernel snippet, line ");
    CHECK_FAULT(message, ", thread ");
  }
}

TEST(a_shuffle_orders_no_memory_but_a_barrier_of_the_warp_does) {
  const auto neighbours = [](const std::string& between) {
    return Snippet{
        kTile,
        "shl.b32 %r5, %r0, 2;\nmov.u32 %r6, tile;\nadd.s32 %r7, %r6, %r5;\nst.shared.u32 [%r7], %r0;\n" + between +
            "xor.b32 %r5, %r5, 4;\nadd.s32 %r7, %r6, %r5;\nld.shared.u32 %r8, [%r7];\nst.global.u32 [%rd2], %r8;"};
  };
  CHECK_EQUAL(run(neighbours("bar.warp.sync 0xffffffff;\n"))[4], uint64_t{5});
  CHECK_FAULT(fault(neighbours("shfl.sync.bfly.b32 %r8, %r0, 1, 31, 0xffffffff;\n")), "race: reads shared memory");
}

TEST(two_threads_that_write_one_word_race) {
  CHECK_FAULT(fault({kTile, "st.shared.u32 [tile], %r0;"}), "race: writes shared memory at 0x0, which thread");
}

TEST(a_read_that_is_overwritten_without_a_barrier_is_a_race) {
  const auto text = [](const std::string& between) {
    return Snippet{
        kTile,
        "setp.eq.s32 %p1, %r0, 0;\n@%p1 st.shared.u32 [tile], 1;\nbar.sync 0;\nld.shared.u32 %r5, [tile];\n" + between +
            "@%p1 st.shared.u32 [tile], %r5;",
        64};
  };
  CHECK_EQUAL(fault(text("bar.sync 0;\n")), std::string());
  CHECK_FAULT(fault(text("")), "race: ");
}

TEST(blocks_are_ordered_by_nothing_but_atomics_agree) {
  const std::string address = "ld.param.u64 %rd4, [out];\n";
  CHECK_FAULT(fault({"", address + "setp.eq.s32 %p1, %r0, 0;\n@%p1 st.global.u32 [%rd4], %r0;", 32, 2}),
              "which another block wrote");
  CHECK_FAULT(fault({"",
                     address + "setp.eq.s32 %p1, %r0, 0;\nld.global.u32 %r5, [%rd4];\nbar.sync 0;\nsetp.eq.and.s32 "
                               "%p2, %r1, 1, %p1;\n@%p2 st.global.u32 [%rd4], %r5;",
                     32, 2}),
              "race: ");
  CHECK_EQUAL(fault({"", address + "red.global.max.u32 [%rd4], %r0;", 64, 3}), std::string());
  CHECK_FAULT(fault({"", address + "red.global.max.u32 [%rd4], %r0;\nld.global.u32 %r5, [%rd4];", 64}), "race: ");
}

TEST(memory_has_bounds) {
  CHECK_FAULT(fault({"", "ld.global.u32 %r5, [%rd1+256];"}), "out of bounds: 4 bytes at 0x");
  CHECK_FAULT(fault({"", "mov.u64 %rd5, 8;\nst.global.u32 [%rd5], %r0;"}), "out of bounds");
  CHECK_FAULT(fault({kTile, "ld.shared.u32 %r5, [tile+512];"}), "of shared memory, which has 512");
  CHECK_FAULT(fault({".local .align 4 .b8 mine[16];\n", "st.local.u32 [mine+16], %r0;"}), "of local memory");
  CHECK_FAULT(fault({"", "ld.param.u64 %rd5, [out+8];"}), "of the kernel's parameters");
  CHECK_FAULT(
      fault({"", "and.b32 %r5, %r0, 1;\nsetp.eq.s32 %p1, %r5, 0;\n@%p1 ld.global.v2.u32 {%r5, %r6}, [%rd1+252];\n"}),
      "misaligned: 8 bytes");
}

TEST(accesses_are_aligned) {
  CHECK_FAULT(fault({"", "ld.global.u32 %r5, [%rd1+2];"}), "misaligned: 4 bytes");
  CHECK_FAULT(fault({kTile, "st.shared.v4.u32 [tile+8], {%r0, %r0, %r0, %r0};"}), "misaligned: 16 bytes at 0x8");
}

TEST(what_nobody_wrote_is_not_used) {
  CHECK_FAULT(fault({"", "st.global.u32 [%rd2], %r5;"}), "stores a value that was never set");
  CHECK_FAULT(fault({"", "@%p1 mov.u32 %r5, 0;"}), "uses a register that was never set");
  CHECK_FAULT(fault({kTile, "ld.shared.u32 %r5, [tile+8];\nadd.s32 %r6, %r5, 1;\nst.global.u32 [%rd2], %r6;"}),
              "or comes of memory that nobody has written: line ");
  CHECK_FAULT(
      fault({kTile, "ld.shared.u32 %r5, [tile+8];\nsetp.eq.s32 %p1, %r5, 0;\n@%p1 bra END;\nEND: mov.u32 %r5, 1;"}),
      "uses a register that was never set");
  // An undefined value may be loaded, and be the operand that selp doesn't choose.
  CHECK_EQUAL(fault({kTile,
                     "ld.shared.u32 %r5, [tile+8];\nsetp.eq.s32 %p1, %r0, 99;\nselp.u32 %r6, %r5, %r0, "
                     "%p1;\nst.global.u32 [%rd2], %r6;"}),
              std::string());
}

TEST(undefined_elements_stay_in_their_column_of_a_product) {
  const auto product = [](const std::string& b, const std::string& stored) {
    return Snippet{"", "setp.lt.s32 %p1, %r9, 4;\nmov.u32 %r5, 0;\n" + b +
                           "mov.f32 %f1, 0f00000000;\n"
                           "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%f2, %f3, %f4, %f5}, {%r5, %r5}, {%r6}, "
                           "{%f1, %f1, %f1, %f1};\n" +
                           stored};
  };
  // Lanes 0 to 3 hold column 0 of B, which enters column 0 of the product: the first register of lanes 0, 4, 8, ...
  const std::string without_column_0 = "@!%p1 mov.u32 %r6, 0;\n";
  CHECK_EQUAL(fault(product(without_column_0, "st.global.f32 [%rd2], %f3;")), std::string());
  CHECK_FAULT(fault(product(without_column_0, "st.global.f32 [%rd2], %f2;")), "stores a value that was never set");
}

TEST(read_only_memory_is_not_written) {
  CHECK_FAULT(fault({"", "st.global.u32 [%rd1], %r0;"}), "writes in at 0x");
  CHECK_FAULT(fault({"", "st.global.u32 [%rd1], %r0;"}), "which is read-only");
}

TEST(a_lane_that_a_mask_names_must_come) {
  const std::string half = "setp.lt.s32 %p1, %r0, 16;\n";
  const std::string alone = fault({"", half + "@%p1 shfl.sync.bfly.b32 %r5, %r0, 1, 31, 0xffffffff;\nbar.sync 0;"});
  CHECK_FAULT(alone, "deadlock; threads 0-15 wait at line");
  CHECK_FAULT(alone, "for lanes 0xffffffff; threads 16-31 wait at line");
  CHECK_FAULT(fault({"", half + "@%p1 ret;\nshfl.sync.bfly.b32 %r5, %r0, 1, 31, 0xffffffff;"}),
              "have ended or never were");
  CHECK_FAULT(fault({"", half + "@%p1 vote.sync.ballot.b32 %r5, %p1, 0xfffe;"}),
              "is not in its own mask of lanes 0xfffe");
  CHECK_FAULT(
      fault(
          {"", half + "selp.u32 %r4, 0xffff, 0xffffffff, %p1;\nshfl.sync.bfly.b32 %r5, %r0, 1, 31, %r4;\nbar.sync 0;"}),
      "thread");
  CHECK_FAULT(fault({"", half + "@%p1 shfl.sync.bfly.b32 %r5, %r0, 16, 31, 0xffff;"}),
              "the shuffle reads lane 16, which is not in the mask 0xffff");
  CHECK_EQUAL(fault({"", half + "@%p1 shfl.sync.bfly.b32 %r5, %r0, 8, 31, 0xffff;"}), std::string());
}

TEST(tensor_cores_need_the_whole_warp) {
  const std::string product =
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%f2, %f3, %f4, %f5}, {%r5, %r5}, {%r5}, {%f1, %f1, %f1, "
      "%f1};\n";
  const std::string set = "mov.u32 %r5, 0;\nmov.f32 %f1, 0f00000000;\nsetp.lt.s32 %p1, %r0, 31;\n";
  CHECK_EQUAL(fault({"", set + product}), std::string());
  CHECK_FAULT(fault({"", set + "@%p1 " + product + "bar.sync 0;"}), "deadlock");
  CHECK_FAULT(fault({"", set + "@%p1 ret;\n" + product}), "threads 0-30 have ended");
}

TEST(a_barrier_is_for_the_whole_block) {
  const std::string warp = "setp.lt.s32 %p1, %r0, 32;\n";
  CHECK_FAULT(fault({"", warp + "@%p1 bar.sync 0;\n@!%p1 ret;", 64}), "threads 32-63 have ended");
  CHECK_FAULT(
      fault({"", "setp.lt.s32 %p1, %r0, 3;\n@%p1 bra A;\nbar.sync 0;\nbra.uni B;\nA: bar.sync 0;\nB: mov.u32 %r5, 0;"}),
      "; threads 3-31 wait at line");
  CHECK_FAULT(fault({"", warp + "@%p1 bra A;\nbar.sync 1;\nbra.uni B;\nA: bar.sync 2;\nB: mov.u32 %r5, 0;", 64}),
              "deadlock");
  CHECK_EQUAL(fault({"", warp + "@%p1 bra A;\nbar.sync 0;\nbra.uni B;\nA: bar.sync 0;\nB: mov.u32 %r5, 0;", 64}),
              std::string());
}

TEST(an_asynchronous_copy_is_there_when_it_was_waited_for) {
  const auto copy = [](const std::string& wait) {
    return Snippet{kTile,
                   "shl.b32 %r5, %r0, 3;\nmov.u32 %r6, tile;\nadd.s32 %r7, %r6, %r5;\ncp.async.ca.shared.global [%r7], "
                   "[%rd1], 8;\ncp.async.commit_group;\n" +
                       wait + "ld.shared.u64 %rd5, [%r7];\nst.global.u64 [%rd2], %rd5;"};
  };
  CHECK_EQUAL(run(copy("cp.async.wait_group 0;\n"), std::vector<uint64_t>(32, 77))[3], uint64_t{77});
  CHECK_FAULT(fault(copy("")), "memory that nobody has written");
  CHECK_FAULT(fault(copy("cp.async.wait_group 1;\n")), "memory that nobody has written");
}

TEST(a_trap_is_reported) { CHECK_FAULT(fault({"", "trap;"}), "the kernel traps"); }

TEST(a_text_that_is_not_understood_is_refused_with_its_line) {
  CHECK_FAULT(fault({"", "frobnicate.s32 %r5, %r0;"}), "PTX line 22: frobnicate.s32: unknown instruction");
  CHECK_FAULT(fault({"", "add.s32 %r5, %rd1, 1;"}), "a register of the wrong width");
  CHECK_FAULT(fault({"", "bra NOWHERE;"}), "no label NOWHERE");
}

int main() { return check::run(); }
