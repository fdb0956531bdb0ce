// What the kernels of nearest_code and their launcher share: the packed codebook, how a search is cut into blocks, and
// partial results.
#pragma once

#ifdef __CUDACC__
#define SEED_FAST_HOST_DEVICE __host__ __device__
#else
#define SEED_FAST_HOST_DEVICE
#endif

namespace seed_fast::nearest_code {

enum Dtype : int { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };  // as csrc/include/dtype.h numbers them

// Which screen a packed codebook is laid out for: m8n8k4 of sm_70, or m16n8k8 and m16n8k16 of what came after.
enum Fragments : int { kSm70 = 0, kSm75 = 1 };

constexpr int kThreads = 128;    // per block, of every kernel
constexpr int kTileCodes = 128;  // codes of one tile
constexpr int kBlockRows = 64;   // rows of z that a screen's block takes
constexpr int kDepth = 32;       // dimensions held in shared memory at a time
constexpr int kOctet = 8;        // dimensions side by side in binary16
constexpr int kGroup = 8;        // codes of which a screen keeps only the largest score
constexpr int kTileGroups = kTileCodes / kGroup;
constexpr int kNoGroup = 0x7fffffff;  // comes after every group
constexpr int kSample = 127;     // entries whose median is the centre
constexpr int kMaxDim = 1 << 20;

struct PackedHeader {
  unsigned bad_norm;         // lowest entry whose squared norm is not finite in float32, or -1
  unsigned max_norm_bits;    // complement of the float32 bits of the largest ||e||^2, rounded up
  unsigned max_spread_bits;  // the same of the largest ||e - c||
  unsigned reserved[13];
};
constexpr int kHeaderFill = 0xff;  // every byte of header and tables, before the first packing kernel

SEED_FAST_HOST_DEVICE inline int code_tiles(int k) { return (k - 1) / kTileCodes + 1; }
SEED_FAST_HOST_DEVICE inline int padded_dim(int d) { return (d + kDepth - 1) / kDepth * kDepth; }
// Slots of one of the two tables that find equal entries: a power of two, twice as many as entries at least.
SEED_FAST_HOST_DEVICE inline int table_slots(int k) {
  int slots = 64;
  while (slots / 2 < k && slots < 1 << 30) slots *= 2;
  return slots;
}

// Code `member` of a group; its codes are not neighbours so that a float32 thread reads its eight without conflict.
SEED_FAST_HOST_DEVICE inline int code_of(int group, int member) {
  return group / kTileGroups * kTileCodes + member / 4 * (kTileCodes / 2) + group % kTileGroups * 4 + member % 4;
}
SEED_FAST_HOST_DEVICE inline int group_of(int code) {
  return code / kTileCodes * kTileGroups + code % (kTileCodes / 2) / 4;
}
SEED_FAST_HOST_DEVICE inline int member_of(int code) { return code % 4 + code % kTileCodes / (kTileCodes / 2) * 4; }

// Where a code lies in its binary16 tile: so that a thread's accumulators, for one row, are whole groups.
SEED_FAST_HOST_DEVICE inline int position_of(int code, int fragments) {
  const int group = group_of(code) % kTileGroups, member = member_of(code);
  const int half = group / 8, part = group / 4 % 2, lanes = group % 4;
  if (fragments == kSm70) {  // 16-column blocks: bits 2 and 0 of the column within are accumulators, 3 and 1 are lanes
    return half * 64 + (part * 2 + member / 4) * 16 + lanes / 2 * 8 + member / 2 % 2 * 4 + lanes % 2 * 2 + member % 2;
  }
  return half * 64 + (part * 4 + member / 2) * 8 + lanes * 2 + member % 2;
}

// What a screen needs of a group of codes.
struct alignas(16) Group {
  float norm;    // largest ||e'||, rounded up
  float square;  // half its square, rounded up
  float scale;   // power of two that binary16 e' are multiplied with to get e'
  float reserved;
};

// A packed codebook is one allocation, 16-byte aligned; offsets and size in bytes. The last tile is filled up with
// codes that are never nearest, dimensions are filled up with zeros. e' = e - center.
struct PackedLayout {
  long long tables;      // unsigned [2, table slots]: lowest entry with this hash
  long long norms64;     // double [K padded]: ||e||^2, +inf where there is no entry
  long long start;       // float [K padded]: -||e'||^2 / 2, -inf where there is no entry or it equals an earlier one
  long long groups;      // Group [K padded / 8]
  long long center;      // float [D padded]
  long long tiles;       // float [K padded / 128, D padded, 128]: e
  long long half_tiles;  // binary16 [K padded / 128, D padded / 8, 128 positions, 8]: scaled e'
  long long bytes;

  SEED_FAST_HOST_DEVICE PackedLayout(int k, int d) {
    const long long codes = static_cast<long long>(code_tiles(k)) * kTileCodes, dim = padded_dim(d);
    const long long word = static_cast<long long>(sizeof(float));
    tables = static_cast<long long>(sizeof(PackedHeader));
    norms64 = tables + 2 * word * table_slots(k);
    start = norms64 + 2 * word * codes;
    groups = start + word * codes;
    center = groups + codes / kGroup * static_cast<long long>(sizeof(Group));
    tiles = center + word * dim;
    half_tiles = tiles + word * codes * dim;
    bytes = half_tiles + word / 2 * codes * dim;
  }
};

// What a screen found for one row in one share of the codebook. With B the error bound of a group: the largest
// (maximum of the group - B), and the three largest (maximum + B), the first two with their groups, in the order that
// stands_before() in nearest_code_device.h defines.
struct Partial {
  float lower, upper[3];
  int group[2];
};

// How a screen of n rows is cut into blocks: rows in groups, the codebook in shares if there are few. A pure function
// of its arguments, as host and device both ask. At most max(row_blocks, wanted) blocks.
struct Plan {
  int tiles_per_block, shares;
  long long row_blocks;

  // `wanted`: blocks that keep the GPU busy.
  SEED_FAST_HOST_DEVICE Plan(long long n, int k, int wanted) {
    row_blocks = (n + kBlockRows - 1) / kBlockRows;
    const int tiles = code_tiles(k);
    const long long most = row_blocks == 0 ? 1 : wanted / row_blocks;
    const int parts = most < 1 ? 1 : most < tiles ? static_cast<int>(most) : tiles;
    tiles_per_block = (tiles - 1) / parts + 1;
    shares = (tiles - 1) / tiles_per_block + 1;
  }
  SEED_FAST_HOST_DEVICE long long blocks() const { return row_blocks * shares; }
};

// Scratch memory of a search of n rows; offsets and size in bytes.
struct Workspace {
  long long open_count;  // unsigned [1], zero beforehand
  long long open_rows;   // unsigned [N]
  long long partials;    // Partial [shares, rows], of whichever rows a screen takes
  long long blocks;      // at most, of a screen
  long long bytes;

  SEED_FAST_HOST_DEVICE Workspace(long long n, int wanted) {
    const long long row_blocks = (n + kBlockRows - 1) / kBlockRows;
    blocks = row_blocks < wanted ? wanted : row_blocks;
    open_count = 0;
    open_rows = 16;
    partials = open_rows + (n + 3) / 4 * 16;
    bytes = partials + blocks * kBlockRows * static_cast<long long>(sizeof(Partial));
  }
};

}  // namespace seed_fast::nearest_code
