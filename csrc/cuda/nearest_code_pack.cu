// Packing a codebook for nearest_code, in three kernels, between which the host doesn't wait: the centre; the entries
// with their norms and hashes; the data that the screens read. See PackedLayout.
#include "nearest_code_device.h"

namespace seed_fast::nearest_code {

// Two hashes of an entry, from which follow its slots in the two tables. Equal entries have equal hashes.
struct Hash {
  unsigned first = 0x9e3779b9u, second = 0x7f4a7c15u;

  SEED_FAST_DEVICE void add(float value) {
    const unsigned bits = float_bits(value);
    first = (first ^ bits) * 0x85ebca6bu;
    first ^= first >> 15;
    second = (second + bits) * 0xc2b2ae35u;
    second ^= second >> 13;
  }
};

// codebook [K, D] of the dtype, row stride in elements -> center: in each dimension the median of up to 127 evenly
// spaced entries. A median, unlike a mean, stays among the entries if a few of them are far away. One block per padded
// dimension.
SEED_FAST_KERNEL(128, 8)
pack_center_kernel(const void* codebook, int dtype, int k, int d, long long row_stride, unsigned char* packed) {
  SEED_FAST_SHARED(float, sample, [kThreads]);
  float* const center = reinterpret_cast<float*>(packed + PackedLayout(k, d).center);
  const int dimension = static_cast<int>(block_index_x()), thread = thread_index();
  const int count = k < kSample ? k : kSample;
  if (dimension >= d) {
    if (thread == 0) center[dimension] = 0;
    return;
  }
  // One sample per thread. Each thread counts the smaller ones; the one with half of them is the median.
  const long long entry = static_cast<long long>(thread) * k / count;
  const float value = thread < count ? load(codebook, dtype, entry * row_stride + dimension) : 0;
  sample[thread] = value;
  barrier();
  int rank = 0;
  for (int i = 0; i < count; ++i) rank += sample[i] < value || (sample[i] == value && i < thread);
  if (thread < count && rank == count / 2) center[dimension] = value;
}

// codebook -> tiles, norms64, tables, and bad_norm and max_norm_bits of the header. One block per tile, one thread per
// code.
SEED_FAST_KERNEL(128, 8)
pack_entries_kernel(const void* codebook, int dtype, int k, int d, long long row_stride, unsigned char* packed) {
  const PackedLayout layout(k, d);
  const int code = static_cast<int>(block_index_x()) * kTileCodes + thread_index();
  float* const column =
      reinterpret_cast<float*>(packed + layout.tiles) + block_index_x() * padded_dim(d) * kTileCodes + thread_index();
  // Copy the entry, and compute its norm and hashes.
  double norm = 0;
  Hash hash;
  for (int i = 0; i < padded_dim(d); ++i) {
    // Adding zero turns -0 into +0, so that entries with equal values have equal bits.
    const float value = code < k && i < d ? load(codebook, dtype, code * row_stride + i) + 0.0f : 0;
    norm = multiply_add(static_cast<double>(value), static_cast<double>(value), norm);
    if (i < d) hash.add(value);
    column[i * kTileCodes] = value;
  }
  reinterpret_cast<double*>(packed + layout.norms64)[code] = code < k ? norm : static_cast<double>(infinity());

  // Enter it in the tables, where the lowest index of each slot remains, and in the header.
  PackedHeader* const header = reinterpret_cast<PackedHeader*>(packed);
  const bool finite = norm <= kFloat32Max;
  if (code < k) {
    unsigned* const table = reinterpret_cast<unsigned*>(packed + layout.tables);
    const unsigned slots = static_cast<unsigned>(table_slots(k));
    atomic_min(&table[hash.first & (slots - 1)], static_cast<unsigned>(code));
    atomic_min(&table[slots + (hash.second & (slots - 1))], static_cast<unsigned>(code));
    if (!finite) atomic_min(&header->bad_norm, static_cast<unsigned>(code));
  }
  float largest = code < k && finite ? float_round_up(norm) : 0;
  for (int mask = 1; mask < kWarp; mask *= 2) largest = maximum(largest, shuffle_xor(largest, mask));
  if (thread_index() % kWarp == 0) atomic_min(&header->max_norm_bits, ~float_bits(largest));
}

// True if two codes have equal elements.
SEED_FAST_DEVICE bool equal_entries(const Codes& codes, int a, int b) {
  const float *a_column = codes.column(a), *b_column = codes.column(b);
  for (int i = 0; i < codes.d; ++i) {
    if (a_column[i * kTileCodes] != b_column[i * kTileCodes]) return false;
  }
  return true;
}

// What the other two kernels have written -> start, groups, half_tiles, and max_spread_bits of the header. An entry
// that equals an earlier one, according to a table, is left out of the screens (start = -inf), so that ties between
// equal entries cost no time. The tables may miss some; then a search takes longer, but its ids are the same. One block
// per tile, one thread per code.
SEED_FAST_KERNEL(128, 8)
pack_screen_kernel(int k, int d, int fragments, unsigned char* packed) {
  SEED_FAST_SHARED(double, squares, [kTileCodes]);
  SEED_FAST_SHARED(float, magnitudes, [kTileCodes]);
  SEED_FAST_SHARED(float, group_up, [kTileGroups]);
  const PackedLayout layout(k, d);
  const Codes codes(packed, k, d);
  const int tile = static_cast<int>(block_index_x()), thread = thread_index(), code = tile * kTileCodes + thread;
  const float* const column = codes.column(code);

  // ||e'||^2 and the largest magnitude of e'; whether the entry equals an earlier one.
  double square = 0;
  float magnitude = 0;
  Hash hash;
  for (int i = 0; i < d; ++i) {
    const float value = column[i * kTileCodes], centered = value - codes.center[i];
    const double difference = static_cast<double>(value) - static_cast<double>(codes.center[i]);
    square = multiply_add(difference, difference, square);
    magnitude = maximum(magnitude, centered < 0 ? -centered : centered);
    hash.add(value);
  }
  bool present = code < k;
  if (present) {
    const unsigned* const table = reinterpret_cast<const unsigned*>(packed + layout.tables);
    const unsigned slots = static_cast<unsigned>(table_slots(k));
    const int others[2] = {static_cast<int>(table[hash.first & (slots - 1)]),
                           static_cast<int>(table[slots + (hash.second & (slots - 1))])};
    for (int other : others) present = present && !(other < code && equal_entries(codes, other, code));
  }
  squares[thread] = present ? square : 0;
  magnitudes[thread] = present ? magnitude : 0;
  reinterpret_cast<float*>(packed + layout.start)[code] = present ? static_cast<float>(-0.5 * square) : -infinity();
  barrier();

  // One thread per group: its norm bounds and its scale.
  if (thread < kTileGroups) {
    double largest_square = 0;
    float largest = 0;
    for (int member = 0; member < kGroup; ++member) {
      const int at = code_of(thread, member);
      largest_square = squares[at] > largest_square ? squares[at] : largest_square;
      largest = maximum(largest, magnitudes[at]);
    }
    largest_square *= 1 + 0x1p-28;
    const Scale scale(largest);
    const float norm = float_round_up(square_root(largest_square) * (1 + 0x1p-50));
    const Group found{norm, float_round_up(0.5 * largest_square), scale.down, 0};
    reinterpret_cast<Group*>(packed + layout.groups)[tile * kTileGroups + thread] = found;
    group_up[thread] = scale.up;
    atomic_min(&reinterpret_cast<PackedHeader*>(packed)->max_spread_bits, ~float_bits(norm));
  }
  barrier();

  // e' in binary16, multiplied by the scale of its group.
  const float up = present ? group_up[group_of(thread)] : 0;
  const int octets = padded_dim(d) / kOctet;
  uint4* const halves = reinterpret_cast<uint4*>(packed + layout.half_tiles) +
                        static_cast<long long>(tile) * octets * kTileCodes + position_of(thread, fragments);
  for (int octet = 0; octet < octets; ++octet) {
    unsigned pairs[kOctet / 2];
    SEED_FAST_UNROLL
    for (int pair = 0; pair < kOctet / 2; ++pair) {
      const int i = octet * kOctet + 2 * pair;
      const float low = (column[i * kTileCodes] - codes.center[i]) * up;
      const float high = (column[(i + 1) * kTileCodes] - codes.center[i + 1]) * up;
      pairs[pair] = half_pair(low, high);
    }
    halves[static_cast<long long>(octet) * kTileCodes] = uint4{pairs[0], pairs[1], pairs[2], pairs[3]};
  }
}

}  // namespace seed_fast::nearest_code
