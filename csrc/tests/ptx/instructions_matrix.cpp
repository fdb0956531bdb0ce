// ldmatrix and mma: loading the fragments of matrices, and multiplying them on tensor cores.
#include <cstring>
#include <string>
#include <unordered_map>
#include <utility>

#include "instructions.h"
#include "operands.h"
#include "values.h"

namespace ptx {
namespace {

// ldmatrix of up to four 8x8 matrices. Row i of matrix m lies at the address that lane 8 m + i gives. Of each matrix
// lane l receives elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4 or, with .trans (options[0]), of column l / 4.
void load_matrices(Warp& warp, const Instruction& in, u32) {
  const int count = in.written;
  u16 rows[32][8];
  for (int row = 0; row < 8 * count; ++row) {
    warp.lane = row;
    const uint64_t from = address_at(warp, in, static_cast<std::size_t>(count), row);
    std::memcpy(rows[row], warp.block->access_defined(warp, Space::shared, from, 16, Use::read), 16);
  }
  for (int m = 0; m < count; ++m) {
    for (int lane = 0; lane < 32; ++lane) {
      const int major = lane / 4, minor = lane % 4 * 2;
      const u16 low = in.options[0] ? rows[8 * m + minor][major] : rows[8 * m + major][minor];
      const u16 high = in.options[0] ? rows[8 * m + minor + 1][major] : rows[8 * m + major][minor + 1];
      warp.slot<u32>(in.slots[static_cast<std::size_t>(m)])[lane] = low | static_cast<u32>(high) << 16;
    }
  }
}

// Marks an element whose register was never set: a NaN with a bit pattern that arithmetic does not produce. Every
// result that it enters becomes undefined, even if it is multiplied by zero.
const double kUndefined = bit_cast<double>(u64{0x7ff8'dead'dead'dead});
bool is_undefined(double x) { return bit_cast<u64>(x) == bit_cast<u64>(kUndefined); }

// An operand of 16-bit numbers, two in each register, which begins at slots[first]: (lane, element) -> value.
template <class T>
struct Fragment {
  Warp& warp;
  const Instruction& in;
  std::size_t first;
  double operator()(int lane, int element) const {
    const u32 slot = in.slots[first + static_cast<std::size_t>(element / 2)], pair = warp.slot<u32>(slot)[lane];
    if (!(warp.defined[slot] >> lane & 1)) return kUndefined;
    return to_double(T{static_cast<u16>(element % 2 ? pair >> 16 : pair)});
  }
};

// D = A B + C for m x k times k x n matrices. place(row, column) returns the lane that holds this element of C and D,
// and the register, counted from the first one of C or D. `group` tells apart the products of one instruction.
template <int m, int n, int k, class Place>
void multiply(Warp& warp, const Instruction& in, const double (&a)[m][k], const double (&b)[k][n], u32 group,
              Place place) {
  // Slots are D, A, B, C. C has as many registers as D, so it starts at index D + A + B = A + B + C = in.read.
  const auto c = static_cast<std::size_t>(in.read);
  f32 out[m][n];
  bool known[m][n];
  for (int row = 0; row < m; ++row) {
    for (int column = 0; column < n; ++column) {
      double products[k];
      const auto [lane, element] = place(row, column);
      known[row][column] = warp.defined[in.slots[c + static_cast<std::size_t>(element)]] >> lane & 1;
      for (int i = 0; i < k; ++i) {
        products[i] = a[row][i] * b[i][column];
        known[row][column] &= !is_undefined(a[row][i]) && !is_undefined(b[i][column]);
      }
      const u32 noise =
          scramble(warp.at_pc * 1031 + group, static_cast<u32>(row * n + column) * 64 + warp.block->settings.seed);
      out[row][column] =
          sum_of_products(products, k, warp.slot<f32>(in.slots[c + static_cast<std::size_t>(element)])[lane],
                          warp.block->settings.arithmetic, noise);
    }
  }
  for (int row = 0; row < m; ++row) {
    for (int column = 0; column < n; ++column) {
      const auto [lane, element] = place(row, column);
      const u32 slot = in.slots[static_cast<std::size_t>(element)];
      warp.slot<f32>(slot)[lane] = out[row][column];
      warp.defined[slot] = (warp.defined[slot] & ~(1u << lane)) | u32(known[row][column]) << lane;
    }
  }
}

// Layout of "Matrix Fragments for mma.m8n8k4": four independent products, each held by a quad pair (lanes 4 p .. 4 p +
// 3 and 4 p + 16 .. 4 p + 19). a_rows and b_rows: the operand is row-major (.row), not column-major (.col).
template <bool a_rows, bool b_rows>
void multiply_m8n8k4(Warp& warp, const Instruction& in, u32) {
  const Fragment<f16> a_at{warp, in, 8}, b_at{warp, in, 10};
  for (int pair = 0; pair < 4; ++pair) {
    double a[8][4], b[4][8];
    const auto lane_of = [&](int i) { return pair * 4 + i % 4 + i / 4 * 16; };  // lane i = 0 .. 7 of the quad pair
    for (int i = 0; i < 8; ++i) {
      for (int j = 0; j < 4; ++j) {
        if (a_rows) a[i][j] = a_at(lane_of(i), j);
        if (!a_rows) a[i][j] = a_at(lane_of(i / 4 * 4 + j), i % 4);
        if (b_rows) b[j][i] = b_at(lane_of(i / 4 * 4 + j), i % 4);
        if (!b_rows) b[j][i] = b_at(lane_of(i), j);
      }
    }
    multiply<8, 8, 4>(warp, in, a, b, static_cast<u32>(pair), [&](int row, int column) {
      // Row bits 0 and 2 and column bit 1 select the lane; column bits 0 and 2 and row bit 1 select its register.
      const int lane = (row & 1) | (column >> 1 & 1) << 1;
      return std::pair(lane_of(lane + (row >> 2) * 4), (column & 1) | (row >> 1 & 1) << 1 | (column >> 2) << 2);
    });
  }
}

// Layout of "Matrix Fragments for mma.m16n8k8" and "... mma.m16n8k16": one product held by the whole warp.
template <class T, int k>
void multiply_m16n8(Warp& warp, const Instruction& in, u32) {
  const Fragment<T> a_at{warp, in, 4}, b_at{warp, in, 4 + k / 4};
  double a[16][k], b[k][8];
  for (int lane = 0; lane < 32; ++lane) {
    const int group = lane / 4, within = lane % 4 * 2;
    for (int i = 0; i < k / 2; ++i) a[group + i / 2 % 2 * 8][within + i % 2 + i / 4 * 8] = a_at(lane, i);
    for (int i = 0; i < k / 4; ++i) b[within + i % 2 + i / 2 * 8][group] = b_at(lane, i);
  }
  multiply<16, 8, k>(warp, in, a, b, 0,
                     [](int row, int column) { return std::pair(row % 8 * 4 + column / 2, column % 2 + row / 8 * 2); });
}

}  // namespace

void read_load_matrices(Statement& statement, Instruction& into) {
  if (!statement.has("m8n8") || !statement.has("b16")) statement.refuse("unknown shape");
  for (const Argument& element : elements(statement.arguments.at(0))) result(statement, into, element);
  address(statement, into, statement.arguments.at(1));
  into.flow = Flow::meet;
  into.options[0] = statement.has("trans");
  into.execute = load_matrices;
}

void read_multiply(Statement& statement, Instruction& into) {
  const auto& arguments = statement.arguments;
  if (arguments.size() != 4) statement.refuse("expected four operands");
  for (const Argument& element : elements(arguments[0])) result(statement, into, element);
  for (std::size_t i : {1, 2, 3}) {
    for (const Argument& element : elements(arguments[i])) operand(statement, into, element, 4);
  }
  std::string name;
  for (const std::string& part : statement.opcode) name += "." + part;
  const std::string f32_f16 = ".f32.f16.f16.f32", f32_bf16 = ".f32.bf16.bf16.f32", aligned = ".mma.sync.aligned.";
  const std::unordered_map<std::string, Execute> known = {
      {aligned + "m8n8k4.row.col" + f32_f16, multiply_m8n8k4<true, false>},
      {aligned + "m8n8k4.row.row" + f32_f16, multiply_m8n8k4<true, true>},
      {aligned + "m8n8k4.col.col" + f32_f16, multiply_m8n8k4<false, false>},
      {aligned + "m8n8k4.col.row" + f32_f16, multiply_m8n8k4<false, true>},
      {aligned + "m16n8k8.row.col" + f32_f16, multiply_m16n8<f16, 8>},
      {aligned + "m16n8k8.row.col" + f32_bf16, multiply_m16n8<bf16, 8>},
      {aligned + "m16n8k16.row.col" + f32_f16, multiply_m16n8<f16, 16>},
      {aligned + "m16n8k16.row.col" + f32_bf16, multiply_m16n8<bf16, 16>},
  };
  const auto found = known.find(name);
  if (found == known.end()) statement.refuse("unknown shape or type");
  into.execute = found->second;
  into.flow = Flow::meet;
  into.settles = true;
}

}  // namespace ptx
