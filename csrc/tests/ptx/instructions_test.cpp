// Single instructions against known values, most of which follow from the rules of the PTX ISA. In the texts below %rd2
// is the address of the thread's result (snippet.h).
#include <cmath>
#include <limits>

#include "snippet.h"
#include "tensor_core.h"

using ptx::Arithmetic;
using ptx::testing::run;
using ptx::testing::Snippet;

namespace {

uint32_t bits(float x) {
  uint32_t out;
  std::memcpy(&out, &x, 4);
  return out;
}
uint64_t bits(double x) {
  uint64_t out;
  std::memcpy(&out, &x, 8);
  return out;
}
float as_float(uint64_t x) {
  const auto low = static_cast<uint32_t>(x);
  float out;
  std::memcpy(&out, &low, 4);
  return out;
}

const float kNan = std::numeric_limits<float>::quiet_NaN(), kInf = std::numeric_limits<float>::infinity();
constexpr uint32_t kMinus = 0x80000000;

// The result of an instruction with a 32-bit result; `operands` are literals, such as "1, 31".
uint32_t word(const std::string& instruction, const std::string& operands) {
  return static_cast<uint32_t>(run({"", instruction + " %r5, " + operands + ";\nst.global.u32 [%rd2], %r5;"})[0]);
}
// The same for a 64-bit result.
uint64_t wide(const std::string& instruction, const std::string& operands) {
  return run({"", instruction + " %rd5, " + operands + ";\nst.global.u64 [%rd2], %rd5;"})[0];
}
// The number as a PTX literal of its bits.
std::string literal(float x) {
  char text[16];
  std::snprintf(text, sizeof text, "0f%08X", bits(x));
  return text;
}
std::string literal(double x) {
  char text[24];
  std::snprintf(text, sizeof text, "0d%016llX", static_cast<unsigned long long>(bits(x)));
  return text;
}
float real(const std::string& instruction, std::vector<float> operands, Arithmetic arithmetic = Arithmetic::exact) {
  std::string text = instruction + " %f5";
  for (float operand : operands) text += ", " + literal(operand);
  Snippet snippet{"", text + ";\nst.global.f32 [%rd2], %f5;"};
  snippet.arithmetic = arithmetic;
  return as_float(run(snippet)[0]);
}
double real64(const std::string& instruction, std::vector<double> operands) {
  std::string text = instruction + " %d5";
  for (double operand : operands) text += ", " + literal(operand);
  const uint64_t out = run({"", text + ";\nst.global.f64 [%rd2], %d5;"})[0];
  double value;
  std::memcpy(&value, &out, 8);
  return value;
}
// The result of a comparison, 1 or 0.
uint32_t test(const std::string& instruction, const std::string& operands) {
  return static_cast<uint32_t>(
      run({"", instruction + " %p1, " + operands + ";\nselp.u32 %r5, 1, 0, %p1;\nst.global.u32 [%rd2], %r5;"})[0]);
}

}  // namespace

TEST(shifts_by_the_width_and_more_are_clamped) {
  CHECK_EQUAL(word("shl.b32", "1, 31"), 0x80000000u);
  CHECK_EQUAL(word("shl.b32", "1, 32"), 0u);
  CHECK_EQUAL(word("shr.u32", "-1, 32"), 0u);
  CHECK_EQUAL(word("shr.s32", "-5, 1"), static_cast<uint32_t>(-3));
  CHECK_EQUAL(word("shr.s32", "-5, 40"), 0xffffffffu);
  CHECK_EQUAL(wide("shl.b64", "1, 63"), uint64_t{1} << 63);
  CHECK_EQUAL(wide("shr.u64", "-1, 64"), uint64_t{0});
  CHECK_EQUAL(word("shf.l.wrap.b32", "0x80000000, 1, 1"), 3u);
  CHECK_EQUAL(word("shf.r.clamp.b32", "7, 9, 40"), 9u);
}

TEST(products_have_a_low_a_high_and_a_wide_half) {
  CHECK_EQUAL(word("mul.lo.s32", "0x10001, 0x10001"), 0x20001u);
  CHECK_EQUAL(word("mul.hi.u32", "-1, -1"), 0xfffffffeu);
  CHECK_EQUAL(word("mul.hi.s32", "-1, -1"), 0u);
  CHECK_EQUAL(word("mul.hi.s32", "-2, 3"), 0xffffffffu);
  CHECK_EQUAL(wide("mul.wide.s32", "-2, 3"), static_cast<uint64_t>(-6));
  CHECK_EQUAL(wide("mul.wide.u32", "-1, -1"), 0xfffffffe00000001u);
  CHECK_EQUAL(wide("mul.hi.u64", "-1, -1"), 0xfffffffffffffffeu);
  CHECK_EQUAL(word("mad.lo.s32", "-3, 5, 7"), static_cast<uint32_t>(-8));
}

TEST(division_rounds_towards_zero) {
  CHECK_EQUAL(word("div.s32", "-7, 2"), static_cast<uint32_t>(-3));
  CHECK_EQUAL(word("rem.s32", "-7, 2"), static_cast<uint32_t>(-1));
  CHECK_EQUAL(word("div.u32", "-7, 2"), 0x7ffffffcu);
}

TEST(bits_are_found_counted_moved_and_reversed) {
  CHECK_EQUAL(word("bfind.u32", "0x10"), 4u);
  CHECK_EQUAL(word("bfind.shiftamt.u32", "0x10"), 27u);
  CHECK_EQUAL(word("bfind.u32", "0"), 0xffffffffu);
  CHECK_EQUAL(word("brev.b32", "6"), 0x60000000u);
  CHECK_EQUAL(word("popc.b32", "0xf0f"), 8u);
  CHECK_EQUAL(word("clz.b32", "1"), 31u);
  CHECK_EQUAL(word("bfe.u32", "0xabcd, 4, 8"), 0xbcu);
  CHECK_EQUAL(word("bfe.s32", "0xabcd, 4, 8"), 0xffffffbcu);
  CHECK_EQUAL(word("bfi.b32", "0xff, 0, 4, 8"), 0xff0u);
  CHECK_EQUAL(word("prmt.b32", "0x03020100, 0x07060504, 0x7410"), 0x07040100u);
  CHECK_EQUAL(word("lop3.b32", "0xf0, 0xcc, 0xaa, 0x96"), 0xf0u ^ 0xccu ^ 0xaau);
}

TEST(a_carry_goes_through_a_chain) {
  const auto chain = run({"",
                          "add.cc.u32 %r5, 0xffffffff, 1;\naddc.cc.u32 %r6, 0xffffffff, 0;\naddc.u32 %r7, 5, 0;\n"
                          "mov.b64 %rd5, {%r6, %r7};\nst.global.u64 [%rd2], %rd5;"});
  CHECK_EQUAL(chain[0], uint64_t{6} << 32);
  const auto borrow =
      run({"", "sub.cc.u32 %r5, 0, 1;\nsubc.u32 %r6, 5, 0;\nmov.b64 %rd5, {%r5, %r6};\nst.global.u64 [%rd2], %rd5;"});
  CHECK_EQUAL(borrow[0], uint64_t{4} << 32 | 0xffffffffu);
}

TEST(float_sums_round_as_they_are_told) {
  const float tiny = 0x1p-30f, up = std::nextafter(1.0f, 2.0f), down = std::nextafter(1.0f, 0.0f);
  CHECK_EQUAL(real("add.rn.f32", {1, tiny}), 1.0f);
  CHECK_EQUAL(real("add.rp.f32", {1, tiny}), up);
  CHECK_EQUAL(real("add.rm.f32", {1, -tiny}), down);
  CHECK_EQUAL(real("add.rz.f32", {-1, tiny}), -down);
  CHECK_EQUAL(real("mul.rp.f32", {up, up}), std::nextafter(std::nextafter(up, 2.0f), 2.0f));
  CHECK_EQUAL(real64("add.rn.f64", {1, 0x1p-53}), 1.0);
}

TEST(fma_rounds_once) {
  const float a = 1 + 0x1p-12f;
  CHECK_EQUAL(real("fma.rn.f32", {a, a, -1}), 0x1p-11f + 0x1p-24f);
  CHECK_EQUAL(real("sub.f32", {real("mul.f32", {a, a}), 1}), 0x1p-11f);
}

TEST(min_and_max_prefer_numbers_and_order_zeros) {
  CHECK_EQUAL(real("min.f32", {kNan, 3}), 3.0f);
  CHECK_EQUAL(real("max.f32", {3, kNan}), 3.0f);
  CHECK(std::isnan(real("max.f32", {kNan, kNan})));
  CHECK(std::isnan(real("max.NaN.f32", {3, kNan})));
  CHECK_EQUAL(bits(real("min.f32", {0.0f, -0.0f})), kMinus);
  CHECK_EQUAL(bits(real("max.f32", {-0.0f, 0.0f})), 0u);
}

TEST(subnormals_are_flushed_where_ftz_says_so) {
  CHECK_EQUAL(real("add.f32", {0x1p-140f, 0}), 0x1p-140f);
  CHECK_EQUAL(real("add.ftz.f32", {0x1p-140f, 0}), 0.0f);
  CHECK_EQUAL(real("ex2.approx.ftz.f32", {-130}), 0.0f);
  CHECK_EQUAL(real("ex2.approx.ftz.f32", {3}), 8.0f);
}

TEST(approximations_err_by_no_more_than_documented) {
  const float exact = real("ex2.approx.f32", {0.3f}), worst = real("ex2.approx.f32", {0.3f}, Arithmetic::worst);
  CHECK(exact != worst);
  CHECK(std::abs(worst / exact - 1) <= 0x1p-22f + 0x1p-24f);
}

TEST(conversions_round_saturate_and_know_nan) {
  CHECK_EQUAL(word("cvt.rni.s32.f32", literal(2.5f)), 2u);
  CHECK_EQUAL(word("cvt.rzi.s32.f32", literal(-2.7f)), static_cast<uint32_t>(-2));
  CHECK_EQUAL(word("cvt.rpi.s32.f32", literal(2.1f)), 3u);
  CHECK_EQUAL(word("cvt.rzi.u32.f32", literal(-5.0f)), 0u);
  CHECK_EQUAL(word("cvt.rzi.s32.f32", literal(3e9f)), 0x7fffffffu);
  CHECK_EQUAL(word("cvt.rzi.s32.f32", literal(kNan)), 0u);
  CHECK_EQUAL(wide("cvt.rzi.s64.f32", literal(kNan)), uint64_t{1} << 63);
}

TEST(float64_rounds_to_float32_up_or_to_nearest) {
  const auto convert = [](const char* how, double x) {
    return as_float(
        run({"", std::string("cvt.") + how + ".f32.f64 %f5, " + literal(x) + ";\nst.global.f32 [%rd2], %f5;"})[0]);
  };
  CHECK_EQUAL(convert("rn", 1 + 0x1p-40), 1.0f);
  CHECK_EQUAL(convert("rp", 1 + 0x1p-40), std::nextafter(1.0f, 2.0f));
  CHECK_EQUAL(convert("rp", -1 - 0x1p-40), -1.0f);
  CHECK_EQUAL(convert("rn", 1e300), kInf);
}

TEST(binary16_rounds_to_even_and_overflows_to_infinity) {
  const auto half = [](float x) {
    return static_cast<uint32_t>(
        run({"", "cvt.rn.f16.f32 %h1, " + literal(x) + ";\ncvt.u32.u16 %r5, %h1;\nst.global.u32 [%rd2], %r5;"})[0]);
  };
  CHECK_EQUAL(half(1), 0x3c00u);
  CHECK_EQUAL(half(1 + 0x1p-11f), 0x3c00u);
  CHECK_EQUAL(half(1 + 0x3p-11f), 0x3c02u);
  CHECK_EQUAL(half(65504), 0x7bffu);
  CHECK_EQUAL(half(65520), 0x7c00u);
  CHECK_EQUAL(half(0x1p-24f), 1u);
  CHECK_EQUAL(half(0x1p-25f), 0u);
  CHECK_EQUAL(half(-2), 0xc000u);
  for (uint32_t pattern = 0; pattern < 0x7c00; pattern += 7) {
    const std::string text =
        "mov.u16 %h1, " + std::to_string(pattern) +
        ";\ncvt.f32.f16 %f5, %h1;\ncvt.rn.f16.f32 %h2, %f5;\ncvt.u32.u16 %r5, %h2;\nst.global.u32 [%rd2], %r5;";
    if (pattern % 97 == 0) CHECK_EQUAL(static_cast<uint32_t>(run({"", text})[0]), pattern);
  }
}

TEST(sixteen_bits_round_once) {
  CHECK_EQUAL(word("add.rn.f16x2", "0x3c003c00, 0x10004000"), 0x3c004200u);  // 1 + 2^-11: to even; 1 + 2
  CHECK_EQUAL(word("fma.rn.bf16x2", "0x3f803f80, 0x40003f80, 0x3f800000"), 0x40403f80u);
}

TEST(two_numbers_become_one_register_the_first_on_top) {
  CHECK_EQUAL(word("cvt.rn.f16x2.f32", literal(1.0f) + ", " + literal(2.0f)), 0x3c004000u);
  CHECK_EQUAL(word("cvt.rn.bf16x2.f32", literal(1.0f) + ", " + literal(2.0f)), 0x3f804000u);
}

TEST(narrow_loads_extend_by_sign_or_zeros) {
  const auto load = [](const char* type) {
    return static_cast<uint32_t>(
        run({"", std::string("ld.global.") + type + " %r5, [%rd1];\nst.global.u32 [%rd2], %r5;"}, {0xfedcba98})[0]);
  };
  CHECK_EQUAL(load("u8"), 0x98u);
  CHECK_EQUAL(load("s8"), 0xffffff98u);
  CHECK_EQUAL(load("u16"), 0xba98u);
  CHECK_EQUAL(load("s16"), 0xffffba98u);
}

TEST(comparisons_with_nan_are_false_unless_unordered) {
  const std::string pair = literal(kNan) + ", " + literal(1.0f);
  for (const char* name : {"eq", "ne", "lt", "le", "gt", "ge", "num"})
    CHECK_EQUAL(test(std::string("setp.") + name + ".f32", pair), 0u);
  for (const char* name : {"equ", "neu", "ltu", "leu", "gtu", "geu", "nan"})
    CHECK_EQUAL(test(std::string("setp.") + name + ".f32", pair), 1u);
  CHECK_EQUAL(test("setp.lt.s32", "-1, 0"), 1u);
  CHECK_EQUAL(test("setp.lt.u32", "-1, 0"), 0u);
  CHECK_EQUAL(test("setp.lo.u32", "1, 2"), 1u);
}

TEST(lanes_part_and_meet_again) {
  // Odd lanes run a loop, even lanes jump over it; then all take part in one vote.
  const auto out = run({"",
                        "and.b32 %r5, %r0, 1;\nsetp.eq.s32 %p1, %r5, 0;\nmov.u32 %r6, 0;\n@%p1 bra EVEN;\n"
                        "LOOP: add.s32 %r6, %r6, -1;\nsetp.gt.s32 %p2, %r6, -5;\n@%p2 bra LOOP;\nbra.uni END;\n"
                        "EVEN: mov.u32 %r6, 7;\nEND: vote.sync.ballot.b32 %r7, %p1, 0xffffffff;\n"
                        "mov.b64 %rd5, {%r6, %r7};\nst.global.u64 [%rd2], %rd5;"});
  CHECK_EQUAL(out[0], 0x5555555500000007u);
  CHECK_EQUAL(out[1], 0x55555555fffffffbu);
}

TEST(shuffles_stay_within_their_segment) {
  const auto shuffle = [](const char* mode, const char* rest) {
    return run(
        {"", std::string("shfl.sync.") + mode + ".b32 %r5|%p1, %r0, " + rest +
                 ", 0xffffffff;\nselp.u32 %r6, 1, 0, %p1;\nmov.b64 %rd5, {%r5, %r6};\nst.global.u64 [%rd2], %rd5;"});
  };
  CHECK_EQUAL(shuffle("bfly", "5, 31")[3], uint64_t{1} << 32 | 6);
  CHECK_EQUAL(shuffle("down", "3, 31")[30], uint64_t{30});
  CHECK_EQUAL(shuffle("up", "3, 0")[2], uint64_t{2});
  CHECK_EQUAL(shuffle("up", "3, 0")[5], uint64_t{1} << 32 | 2);
  CHECK_EQUAL(shuffle("idx", "9, 31")[20], uint64_t{1} << 32 | 9);
  CHECK_EQUAL(shuffle("idx", "1, 0x181f")[21], uint64_t{1} << 32 | 17);  // segments of eight lanes
}

TEST(reductions_join_all_lanes) {
  CHECK_EQUAL(
      static_cast<uint32_t>(run({"", "redux.sync.min.s32 %r5, %r0, 0xffffffff;\nst.global.u32 [%rd2], %r5;"})[9]), 0u);
  CHECK_EQUAL(
      static_cast<uint32_t>(run({"", "redux.sync.add.u32 %r5, %r0, 0xffffffff;\nst.global.u32 [%rd2], %r5;"})[9]),
      496u);
}

TEST(atomics_of_many_blocks_add_up) {
  const auto out = run({"", "ld.param.u64 %rd4, [out];\natom.global.add.u32 %r5, [%rd4], 1;", 64, 5});
  CHECK_EQUAL(out[0], uint64_t{320});
}

TEST(a_function_is_called_with_its_arguments) {
  const std::string text =
      ".version 8.8\n.target sm_70\n.address_size 64\n"
      ".func (.param .b32 result) twice(.param .b32 x)\n{\n.reg .b32 %r<3>;\nld.param.b32 %r1, [x];\nadd.s32 %r2, %r1, "
      "%r1;\n"
      "st.param.b32 [result+0], %r2;\nret;\n}\n"
      ".visible .entry kernel(.param .u64 out)\n{\n.reg .b32 %r<4>;\n.reg .b64 %rd<4>;\nmov.u32 %r1, %tid.x;\n"
      "{ .param .b32 param0;\nst.param.b32 [param0+0], %r1;\n.param .b32 retval0;\ncall.uni (retval0), twice, "
      "(param0);\n"
      "ld.param.b32 %r2, [retval0+0];\n}\n"
      "ld.param.u64 %rd1, [out];\nmul.wide.u32 %rd2, %r1, 4;\nadd.s64 %rd3, %rd1, %rd2;\nst.global.u32 [%rd3], "
      "%r2;\nret;\n}\n";
  std::vector<uint32_t> out(32);
  ptx::Machine machine;
  ptx::Segment segment;
  segment.name = "out", segment.base = reinterpret_cast<uint64_t>(out.data()), segment.size = 128;
  segment.bytes = reinterpret_cast<uint8_t*>(out.data());
  machine.memory.add(segment);
  std::vector<uint8_t> parameters(8);
  std::memcpy(parameters.data(), &segment.base, 8);
  machine.launch(*ptx::Program::parse(text), "kernel", {}, {32, 1, 1}, 0, parameters);
  CHECK_EQUAL(out[21], 42u);
}

TEST(tensor_cores_multiply_the_fragments_of_the_manual) {
  // A and B by the manual's layout of m16n8k16: A[i][k] = i + 1 where k = i % 8, B[k][j] = 2^-j where k = 3, so that
  // D[i][j] = (i + 1) 2^-j in rows 3 and 11 and C elsewhere.
  const char* body =
      "shr.u32 %r10, %r9, 2;\nand.b32 %r11, %r9, 3;\nshl.b32 %r12, %r11, 1;\n"  // group, thread in it, its first k
      // a0 (row group), a1 (row group + 8): halves k = 2t, 2t + 1
      "setp.eq.s32 %p1, %r10, %r12;\nadd.s32 %r13, %r12, 1;\nsetp.eq.s32 %p2, %r10, %r13;\n"
      "add.s32 %r14, %r10, 1;\ncvt.rn.f32.s32 %f1, %r14;\nadd.s32 %r14, %r10, 9;\ncvt.rn.f32.s32 %f2, %r14;\n"
      "selp.f32 %f3, %f1, 0f00000000, %p1;\nselp.f32 %f4, %f1, 0f00000000, %p2;\ncvt.rn.f16x2.f32 %r20, %f4, %f3;\n"
      "selp.f32 %f3, %f2, 0f00000000, %p1;\nselp.f32 %f4, %f2, 0f00000000, %p2;\ncvt.rn.f16x2.f32 %r21, %f4, %f3;\n"
      "mov.u32 %r22, 0;\nmov.u32 %r23, 0;\n"
      // b0: k = 2t, 2t + 1, column group: k = 3 is the upper half of t = 1
      "setp.eq.s32 %p3, %r11, 1;\nsub.s32 %r15, 0, %r10;\ncvt.rn.f32.s32 %f5, %r15;\nex2.approx.f32 %f5, %f5;\n"
      "selp.f32 %f6, %f5, 0f00000000, %p3;\ncvt.rn.f16x2.f32 %r24, %f6, 0f00000000;\nmov.u32 %r25, 0;\n"
      "mov.f32 %f10, 0f3F800000;\nmov.f32 %f11, 0f3F800000;\nmov.f32 %f12, 0f3F800000;\nmov.f32 %f13, 0f3F800000;\n"
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%f10, %f11, %f12, %f13}, {%r20, %r21, %r22, %r23}, {%r24, "
      "%r25}, {%f10, %f11, %f12, %f13};\n"
      "mov.b64 %rd5, {%f11, %f13};\nst.global.u64 [%rd2], %rd5;";
  const auto out = run({"", body});
  for (int lane = 0; lane < 32; ++lane) {
    const int group = lane / 4, column = lane % 4 * 2 + 1;
    const float low = as_float(out[lane]), high = as_float(out[lane] >> 32);
    CHECK_EQUAL(low, 1 + (group == 3 ? std::ldexp(4.0f, -column) : 0));
    CHECK_EQUAL(high, 1 + (group == 3 ? std::ldexp(12.0f, -column) : 0));
  }
}

TEST(models_of_the_tensor_core_differ_within_their_bound) {
  const double products[] = {1, 0x1p-24, 0x1p-24, 0x1p-24};
  CHECK_EQUAL(ptx::sum_of_products(products, 4, 0, Arithmetic::exact, 0), 1 + 0x1p-22f);
  CHECK_EQUAL(ptx::sum_of_products(products, 4, 0, Arithmetic::truncating, 0), 1.0f);
  for (uint32_t noise = 0; noise < 20; ++noise) {
    const double wrong = ptx::sum_of_products(products, 4, 0, Arithmetic::worst, noise);
    const double bound = 6 * 0x1p-23 * (1 + 3 * 0x1p-24);
    CHECK(std::abs(wrong - (1 + 3 * 0x1p-24)) <= bound);
    CHECK(std::abs(wrong - (1 + 3 * 0x1p-24)) >= 0.6 * bound);
  }
  // When the largest products cancel, the exact model keeps the small one.
  const double cancelling[] = {0x1p30, 0x1p-20, -0x1p30, 0};
  CHECK_EQUAL(ptx::sum_of_products(cancelling, 4, 0, Arithmetic::exact, 0), 0x1p-20f);
}

int main() { return check::run(); }
