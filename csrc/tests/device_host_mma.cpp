// Tensor cores of device_host.h. Where each element lies is written as the PTX ISA writes it, in its words: a map from
// (lane, element of the fragment) to (row, column).
#include <algorithm>
#include <cmath>

#include "device_host.h"

namespace seed_fast::device::host {
namespace {

struct Place {
  int row, column;
};

float half_of(const unsigned* registers, int i) {
  return half_to_float(static_cast<unsigned short>(registers[i / 2] >> (i % 2 * 16)));
}

// Towards zero to a multiple of unit, a power of two.
double cut(double value, double unit) { return std::trunc(value / unit) * unit; }

double unit_of(double magnitude) {
  return magnitude == 0 ? 0x1p-149 : std::max(0x1p-149, std::ldexp(1.0, std::ilogb(magnitude) - 23));
}

// One step of a tensor core: c and four products, aligned to the largest of them, cut off at 24 bits, summed and cut off
// once more. (Newer generations align more terms at once and keep a bit or two more, and stay within the same bound.)
float add_products(float c, const double (&products)[4]) {
  double largest = std::fabs(static_cast<double>(c)), plain = c;
  for (double product : products) {
    largest = std::max(largest, std::fabs(product));
    plain += product;
  }
  if (!std::isfinite(plain)) return static_cast<float>(plain);
  const double unit = unit_of(largest);
  double sum = cut(c, unit);
  for (double product : products) sum += cut(product, unit);
  return static_cast<float>(cut(sum, unit_of(std::fabs(sum))));
}

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

template <bool kRowMajorB>
void quad_pairs(Fragment* lanes) {
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

// .m16n8k8 and .m16n8k16, whose fragments are the same but for their length.
template <int kDepth>
void whole_warp(Fragment* lanes) {
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

void compute_m8n8k4(Fragment* lanes) { quad_pairs<false>(lanes); }
void compute_m8n8k4_row_row(Fragment* lanes) { quad_pairs<true>(lanes); }
void compute_m16n8k8(Fragment* lanes) { whole_warp<8>(lanes); }
void compute_m16n8k16(Fragment* lanes) { whole_warp<16>(lanes); }

}  // namespace seed_fast::device::host
