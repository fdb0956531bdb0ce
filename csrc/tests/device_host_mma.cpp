// The emulated tensor cores of device_host.h. The layout of each fragment is a function from (lane, element of the
// fragment) to (row, column) of the matrix, in the notation of the PTX ISA ("Matrix Fragments for mma...").
#include <algorithm>
#include <cmath>

#include "device_host.h"

namespace seed_fast::device::host {
namespace {

// Where an element of a fragment lies in its matrix.
struct Place {
  int row, column;
};

// Element i of a fragment of binary16 numbers, two in each register.
float half_of(const unsigned* registers, int i) {
  return half_to_float(static_cast<unsigned short>(registers[i / 2] >> (i % 2 * 16)));
}

// The value rounded towards zero to a multiple of `unit`, a power of two.
double truncate(double value, double unit) { return std::trunc(value / unit) * unit; }

// The last place of a 24-bit significand of this magnitude, not below the smallest subnormal float32.
double unit_of(double magnitude) {
  return magnitude == 0 ? 0x1p-149 : std::max(0x1p-149, std::ldexp(1.0, std::ilogb(magnitude) - 23));
}

// c plus four products, as a Volta tensor core adds them: all terms are aligned to the largest and truncated to 24
// bits, and their sum is truncated to 24 bits again. (Newer generations align more terms at once and keep one or two
// bits more; their error stays within the same bound.)
float add_products(float c, const double (&products)[4]) {
  double largest = std::fabs(static_cast<double>(c)), plain = c;
  for (double product : products) {
    largest = std::max(largest, std::fabs(product));
    plain += product;
  }
  if (!std::isfinite(plain)) return static_cast<float>(plain);
  const double unit = unit_of(largest);
  double sum = truncate(c, unit);
  for (double product : products) sum += truncate(product, unit);
  return static_cast<float>(truncate(sum, unit_of(std::fabs(sum))));
}

// c += a b, four products at a time.
template <int kRows, int kDepth>
void multiply(const float (&a)[kRows][kDepth], const float (&b)[kDepth][8], float (&c)[kRows][8]) {
  for (int row = 0; row < kRows; ++row) {
    for (int column = 0; column < 8; ++column) {
      for (int k = 0; k < kDepth; k += 4) {
        double products[4];
        for (int i = 0; i < 4; ++i) products[i] = static_cast<double>(a[row][k + i]) * b[k + i][column];
        c[row][column] = add_products(c[row][column], products);
      }
    }
  }
}

// .m8n8k4: four independent 8x8x4 products, each held by a quad pair (4 lanes of the lower half of the warp and 4 of
// the upper half). kRowMajorB: the .row layout of B instead of .col.
template <bool kRowMajorB>
void multiply_quad_pairs(Fragment* lanes) {
  const auto a_place = [](int laneid, int i) { return Place{laneid < 16 ? laneid % 4 : laneid % 4 + 4, i}; };
  const auto b_place = [](int laneid, int i) {
    if (kRowMajorB) return Place{laneid % 4, laneid < 16 ? i : i + 4};
    return Place{i, laneid < 16 ? laneid % 4 : laneid % 4 + 4};
  };
  const auto c_place = [](int laneid, int i) {
    const int x = (laneid & 1) + (i & 2);
    return Place{laneid < 16 ? x : x + 4, (i & 4) + (laneid & 2) + (i & 1)};
  };
  for (int computation = 0; computation < 4; ++computation) {
    // Gather the matrices from the eight lanes of the quad pair, multiply, and hand back the elements of c.
    float a[8][4], b[4][8], c[8][8];
    const auto each = [&](auto&& visit) {
      for (int laneid = 0; laneid < kWarp; ++laneid) {
        if (laneid % 16 / 4 == computation) visit(laneid, lanes[laneid]);
      }
    };
    each([&](int laneid, const Fragment& part) {
      for (int i = 0; i < 4; ++i) {
        const Place at_a = a_place(laneid, i), at_b = b_place(laneid, i);
        a[at_a.row][at_a.column] = half_of(part.a, i);
        b[at_b.row][at_b.column] = half_of(part.b, i);
      }
      for (int i = 0; i < 8; ++i) c[c_place(laneid, i).row][c_place(laneid, i).column] = part.c[i];
    });
    multiply(a, b, c);
    each([&](int laneid, Fragment& part) {
      for (int i = 0; i < 8; ++i) part.c[i] = c[c_place(laneid, i).row][c_place(laneid, i).column];
    });
  }
}

// .m16n8k8 and .m16n8k16 (kDepth 8 and 16): one product held by the whole warp. The two shapes differ only in how many
// registers of a and b each lane holds.
template <int kDepth>
void multiply_warp(Fragment* lanes) {
  const auto a_place = [](int laneid, int i) {
    const int group = laneid >> 2, thread_in_group = laneid % 4;
    return Place{i % 4 < 2 ? group : group + 8, thread_in_group * 2 + (i & 1) + (i < 4 ? 0 : 8)};
  };
  const auto b_place = [](int laneid, int i) {
    const int group = laneid >> 2, thread_in_group = laneid % 4;
    return Place{thread_in_group * 2 + (i & 1) + (i < 2 ? 0 : 8), group};
  };
  const auto c_place = [](int laneid, int i) {
    const int group = laneid >> 2, thread_in_group = laneid % 4;
    return Place{i < 2 ? group : group + 8, thread_in_group * 2 + (i & 1)};
  };
  float a[16][kDepth], b[kDepth][8], c[16][8];
  for (int laneid = 0; laneid < kWarp; ++laneid) {
    const Fragment& part = lanes[laneid];
    for (int i = 0; i < kDepth / 2; ++i) a[a_place(laneid, i).row][a_place(laneid, i).column] = half_of(part.a, i);
    for (int i = 0; i < kDepth / 4; ++i) b[b_place(laneid, i).row][b_place(laneid, i).column] = half_of(part.b, i);
    for (int i = 0; i < 4; ++i) c[c_place(laneid, i).row][c_place(laneid, i).column] = part.c[i];
  }
  multiply(a, b, c);
  for (int laneid = 0; laneid < kWarp; ++laneid) {
    for (int i = 0; i < 4; ++i) lanes[laneid].c[i] = c[c_place(laneid, i).row][c_place(laneid, i).column];
  }
}

}  // namespace

void compute_m8n8k4(Fragment* lanes) { multiply_quad_pairs<false>(lanes); }
void compute_m8n8k4_row_row(Fragment* lanes) { multiply_quad_pairs<true>(lanes); }
void compute_m16n8k8(Fragment* lanes) { multiply_warp<8>(lanes); }
void compute_m16n8k16(Fragment* lanes) { multiply_warp<16>(lanes); }

}  // namespace seed_fast::device::host
