// What the kernels of nearest_code and their launcher share: the packed codebook, how a search is divided into blocks,
// and partial results. Terms used in all files of nearest_code:
//   code, entry     a row e of the codebook
//   tile            128 codes, which a block processes at once
//   group           8 codes of a tile; a screen keeps only the largest of their scores
//   screen          computes approximate scores of all codes, with an error bound, to find the few groups in which the
//                   nearest code can be
//   share           a range of tiles: with few rows, several blocks screen the same rows against different shares
//   partial result  what a screen keeps for one row and one share
#pragma once

#ifdef __CUDACC__
#define SEED_FAST_HOST_DEVICE __host__ __device__
#else
#define SEED_FAST_HOST_DEVICE
#endif

namespace seed_fast::nearest_code {

enum Dtype : int { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };  // as csrc/include/dtype.h numbers them

// The tensor-core instruction for which a codebook is packed: m8n8k4 (sm_70), or m16n8k8 and m16n8k16 (newer GPUs).
enum Fragments : int { kSm70 = 0, kSm75 = 1 };

constexpr int kThreads = 128;    // per block, of every kernel
constexpr int kTileCodes = 128;  // codes of a tile
constexpr int kBlockRows = 64;   // rows of z of one block of a screen
constexpr int kDepth = 32;       // dimensions held in shared memory at a time
constexpr int kOctet = 8;        // neighbouring dimensions of one code in binary16: 16 bytes
constexpr int kGroup = 8;        // codes of a group
constexpr int kTileGroups = kTileCodes / kGroup;
constexpr int kNoGroup = 0x7fffffff;  // index of no group; larger than that of any
constexpr int kSample = 127;          // the centre is the median of at most this many entries
constexpr int kMaxDim = 1 << 20;

struct PackedHeader {
  unsigned bad_norm;         // index of the first entry whose squared norm is not finite in float32, or -1
  unsigned max_norm_bits;    // complement of the float32 bits of the largest ||e||^2, rounded up
  unsigned max_spread_bits;  // the same for the largest ||e - center||
  unsigned reserved[13];
};
constexpr int kHeaderFill = 0xff;  // value of every byte of header and tables before the first packing kernel

SEED_FAST_HOST_DEVICE inline int code_tiles(int k) { return (k - 1) / kTileCodes + 1; }
SEED_FAST_HOST_DEVICE inline int padded_dim(int d) { return (d + kDepth - 1) / kDepth * kDepth; }
// Number of slots of each of the two hash tables that find equal entries: a power of two, at least twice the entries.
SEED_FAST_HOST_DEVICE inline int table_slots(int k) {
  int slots = 64;
  while (slots / 2 < k && slots < 1 << 30) slots *= 2;
  return slots;
}

// The codes of a group are two runs of four, 64 codes apart: so the float32 screen, in which a thread has one group,
// reads shared memory without bank conflicts. Code `member` (0 .. 7) of a group, and the inverse functions:
SEED_FAST_HOST_DEVICE inline int code_of(int group, int member) {
  return group / kTileGroups * kTileCodes + member / 4 * (kTileCodes / 2) + group % kTileGroups * 4 + member % 4;
}
SEED_FAST_HOST_DEVICE inline int group_of(int code) {
  return code / kTileCodes * kTileGroups + code % (kTileCodes / 2) / 4;
}
SEED_FAST_HOST_DEVICE inline int member_of(int code) { return code % 4 + code % kTileCodes / (kTileCodes / 2) * 4; }

// Position (0 .. 127) of a code in its binary16 tile. It is chosen such that the accumulators of one thread of the
// tensor core, for one row, are the scores of whole groups.
SEED_FAST_HOST_DEVICE inline int position_of(int code, int fragments) {
  const int group = group_of(code) % kTileGroups, member = member_of(code);
  const int half = group / 8, part = group / 4 % 2, lanes = group % 4;
  if (fragments == kSm70) {
    // Blocks of 16 columns: bits 2 and 0 of the column select the accumulator, bits 3 and 1 the lane.
    return half * 64 + (part * 2 + member / 4) * 16 + lanes / 2 * 8 + member / 2 % 2 * 4 + lanes % 2 * 2 + member % 2;
  }
  return half * 64 + (part * 4 + member / 2) * 8 + lanes * 2 + member % 2;
}

// Data of a group from which a screen computes its error bound; e' = e - center.
struct alignas(16) Group {
  float norm;    // largest ||e'||, rounded up
  float square;  // half its square, rounded up
  float scale;   // power of two; e' = scale times what half_tiles holds
  float reserved;
};

// A packed codebook is one 16-byte aligned allocation: a PackedHeader, then these arrays. Offsets and size in bytes.
// The last tile is padded with codes that are never nearest, and dimensions are padded with zeros; e' = e - center.
struct PackedLayout {
  long long tables;      // unsigned [2, table slots]: the first entry with this hash
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

// The partial result of a screen for one row and one share of the codebook. A group whose largest computed score is m,
// with error bound B, has its best exact score in [m - B, m + B].
struct Partial {
  float lower;     // largest m - B of all groups: no nearest code has a lower score
  float upper[3];  // the three largest m + B, in the order of stands_before() (nearest_code_device.h)
  int group[2];    // the groups of the first two
};

// How a screen of n rows is divided into blocks: 64 rows each and, if that makes too few blocks, shares of the
// codebook. At most max(row_blocks, wanted) blocks. A pure function of its arguments, since host and device must agree.
struct Plan {
  int tiles_per_block, shares;
  long long row_blocks;

  // `wanted`: number of blocks that keep the GPU busy.
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
  long long open_count;  // unsigned [1], zero before the search: number of rows that the binary16 screen left undecided
  long long open_rows;   // unsigned [N]: their indices
  long long partials;    // Partial [shares, rows]: first of all rows (binary16), later of the undecided ones (float32)
  long long blocks;      // largest number of blocks of a screen
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
