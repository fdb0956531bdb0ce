#include "machine.h"

#include <algorithm>
#include <cfenv>
#include <cstring>

namespace ptx {
namespace {

// The threads of a mask of lanes, such as "0-15, 20".
std::string describe_lanes(uint32_t lanes, int first_thread) {
  std::string text;
  for (int lane = 0; lane < 32; ++lane) {
    if (!(lanes >> lane & 1)) continue;
    int last = lane;
    while (last < 31 && (lanes >> (last + 1) & 1)) ++last;
    text += (text.empty() ? "" : ", ") + std::to_string(first_thread + lane);
    if (last > lane) text += "-" + std::to_string(first_thread + last);
    lane = last;
  }
  return text;
}

// A line of the PTX text with its number, without comment.
std::string quote(const Program& program, int line) {
  std::string text = line > 0 ? program.lines[static_cast<std::size_t>(line) - 1] : "";
  text.erase(0, text.find_first_not_of(" \t"));
  text.erase(std::min(text.find("//"), text.size()));
  text.erase(text.find_last_not_of(" \t\r") + 1);
  return "line " + std::to_string(line) + " `" + text + "`";
}

// The beginning of a fault's message: kernel, line, block and thread.
std::string where(const Program& program, const Block& block, const Warp& warp, int lane, uint32_t pc) {
  return "kernel " + block.kernel->name + ", " + quote(program, program.code[pc].line) + ", block (" +
         std::to_string(block.index.x) + ", " + std::to_string(block.index.y) + ", " + std::to_string(block.index.z) +
         "), thread " + std::to_string(warp.first_thread + lane) + ": ";
}

// For the message of a deadlock: which threads wait at which line and for which lanes, and which have ended.
std::string who_waits(const Program& program, const Block& block) {
  std::string text;
  for (const Warp& warp : block.warps) {
    uint32_t left = warp.waiting;
    while (left) {
      const int first = __builtin_ctz(left);
      uint32_t same = 0;
      for (int lane = 0; lane < 32; ++lane) {
        if ((left >> lane & 1) && warp.pc[lane] == warp.pc[first] && warp.members[lane] == warp.members[first])
          same |= 1u << lane;
      }
      left &= ~same;
      const Instruction& instruction = program.code[warp.pc[first]];
      text += "; threads " + describe_lanes(same, warp.first_thread) + " wait at " + quote(program, instruction.line);
      if (instruction.flow == Flow::meet) text += " for lanes " + hexadecimal(warp.members[first]);
    }
    if (warp.finished) text += "; threads " + describe_lanes(warp.finished, warp.first_thread) + " have ended";
  }
  return text;
}

std::string undefined_register(const Warp& warp) {
  const std::string& load = warp.undefined_load;
  return "uses a register that was never set" +
         (load.empty() ? "" : ", or with memory that nobody has written: " + load);
}

// Returns the mask of lanes with an operand that was never set, whose results are therefore undefined. Throws Fault if
// it is one of the operands that must be defined (addresses, masks).
uint32_t undefined_lanes(Warp& warp, const Instruction& instruction, uint32_t active) {
  uint32_t undefined = 0;
  const int end = instruction.written + instruction.read;
  for (int i = instruction.written; i < end; ++i) {
    const uint32_t missing = active & ~warp.defined[instruction.slots[static_cast<std::size_t>(i)]];
    if (missing && i >= end - instruction.needed) {
      warp.lane = __builtin_ctz(missing);
      throw Fault(undefined_register(warp));
    }
    undefined |= missing;
  }
  return undefined;
}

// Marks the results of the active lanes as defined, except in the lanes `undefined`.
void define_results(Warp& warp, const Instruction& instruction, uint32_t active, uint32_t undefined) {
  for (int i = 0; i < instruction.written && !instruction.settles; ++i) {
    uint32_t& defined = warp.defined[instruction.slots[static_cast<std::size_t>(i)]];
    defined = (defined | active) & ~undefined;
  }
}

// Sets the rounding mode of the processor for one instruction.
class Rounding {
 public:
  explicit Rounding(int mode) : changed_(mode != FE_TONEAREST) {
    if (changed_) std::fesetround(mode);
  }
  ~Rounding() {
    if (changed_) std::fesetround(FE_TONEAREST);
  }

 private:
  const bool changed_;
};

}  // namespace

Toucher Block::toucher(const Warp& warp) const {
  return {static_cast<uint16_t>(warp.first_thread + warp.lane),
          warp.time,
          static_cast<uint32_t>(program->code[warp.at_pc].line),
          launch_time,
          block_time,
          time,
          settings.copies_allowed};
}

Place Block::access(Warp& warp, Space space, uint64_t address, uint32_t count, Use use, const uint8_t* written) {
  // Turn a generic address into one of its memory.
  if (space == Space::generic) {
    space = address & kSharedWindow ? Space::shared : address & kLocalWindow ? Space::local : Space::global;
    address &= ~(kSharedWindow | kLocalWindow);
  }
  if (address % count != 0) throw Fault("misaligned: " + std::to_string(count) + " bytes at " + hexadecimal(address));
  // True if the write leaves memory unchanged, and copies are allowed.
  const auto same = [&](const Segment& segment) {
    const uint64_t from = address - segment.base;
    return written != nullptr && settings.copies_allowed && segment.count_undefined(from, count) == 0 &&
           std::memcmp(segment.bytes + from, written, count) == 0;
  };
  // Checks the bounds.
  const auto inside = [&](const Segment& segment, uint64_t size) {
    if (address <= size && count <= size - address) return;
    throw Fault("out of bounds: " + std::to_string(count) + " bytes at " + hexadecimal(address) + " of " +
                segment.name + ", which has " + std::to_string(size));
  };
  switch (space) {
    case Space::shared:
      inside(shared, shared.size);
      return shared.use(address, count, use, toucher(warp), same(shared));
    case Space::param: inside(parameters, parameters.size); return parameters.use(address, count, use, toucher(warp));
    case Space::local: {
      const uint64_t each = static_cast<uint64_t>(kernel->local_bytes);
      inside(local, each);
      return local.use(address + each * static_cast<uint64_t>(warp.first_thread + warp.lane), count, use,
                       toucher(warp));
    }
    default: break;
  }
  // Global memory: the access must lie within one allocation.
  Segment* const found = global->find(address);
  if (found == nullptr || count > found->size - (address - found->base)) {
    throw Fault("out of bounds: " + std::to_string(count) + " bytes at " + hexadecimal(address) +
                " of global memory, " + (found ? "across the end of " + found->name : global->describe(address)));
  }
  return found->use(address, count, use, toucher(warp), same(*found));
}

uint8_t* Block::access_defined(Warp& warp, Space space, uint64_t address, uint32_t count, Use use) {
  const Place place = access(warp, space, address, count, use);
  if (place.undefined != nullptr &&
      std::any_of(place.undefined, place.undefined + count, [](uint8_t x) { return x; })) {
    throw Fault("reads " + std::to_string(count) + " bytes at " + hexadecimal(address) + ", which nobody has written");
  }
  return place.bytes;
}

void Machine::launch(Program& program, const std::string& kernel_name, Extent grid, Extent threads,
                     uint64_t shared_bytes, const std::vector<uint8_t>& parameters) {
  // Check the launch, and make the text's global variables known.
  const Function& kernel = program.kernel(kernel_name);
  const uint64_t count = threads.count();
  const auto refuse = [&](const std::string& why) { throw Fault("kernel " + kernel_name + ": " + why); };
  if (count == 0 || static_cast<int64_t>(count) > kernel.most_threads || count > 1024) {
    refuse("launched with " + std::to_string(count) + " threads a block, declared for " +
           std::to_string(kernel.most_threads));
  }
  if (grid.count() == 0 || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535) refuse("no valid grid");
  for (const auto& variable : program.variables) {
    const uint64_t base = reinterpret_cast<uint64_t>(variable->bytes.data() + variable->padding);
    if (memory.find(base)) continue;
    Segment segment;
    segment.name = "variable " + variable->name, segment.base = base;
    segment.bytes = variable->bytes.data() + variable->padding;
    segment.size = variable->bytes.size() - variable->padding;
    segment.read_only = variable->read_only, segment.watched = true;
    memory.add(std::move(segment));
  }

  // Allocate shared memory, local memory and parameters. Local memory holds the threads one after another.
  Block block;
  block.global = &memory, block.program = &program, block.kernel = &kernel, block.settings = settings;
  block.random.seed(settings.seed);
  block.grid = grid, block.threads = threads;
  block.launch_time = ++clock_;
  block.parameter_bytes = parameters;
  block.parameters.name = "the kernel's parameters", block.parameters.size = parameters.size();
  block.parameters.bytes = block.parameter_bytes.data(), block.parameters.read_only = true;
  const uint64_t static_bytes = static_cast<uint64_t>(kernel.shared_bytes);
  block.shared_bytes.resize(static_bytes + shared_bytes);
  block.shared.name = "shared memory", block.shared.size = block.shared_bytes.size();
  block.shared.bytes = block.shared_bytes.data(), block.shared.watched = block.shared.one_block = true;
  block.local_bytes.resize(count * static_cast<uint64_t>(kernel.local_bytes));
  block.local.name = "local memory", block.local.size = block.local_bytes.size();
  block.local.bytes = block.local_bytes.data();

  // Prepare the warps: constants are filled in once, special registers for each block (run_block).
  block.warps = std::move(warps_);
  block.warps.resize((count + 31) / 32);
  for (std::size_t index = 0; index < block.warps.size(); ++index) {
    Warp& warp = block.warps[index];
    warp.first_thread = static_cast<int>(index) * 32;
    if (warp.frame.size() < std::size_t(kernel.slots) * 32) warp.frame.resize(std::size_t(kernel.slots) * 32);
    for (const Constant& constant : kernel.constants) {
      if (constant.width == 0) warp.predicate(constant.slot) = constant.bits ? ~0u : 0;
      for (int lane = 0; lane < 32 && constant.width > 0; ++lane) {
        std::memcpy(warp.slot<char>(constant.slot) + lane * constant.width, &constant.bits,
                    std::size_t(constant.width));
      }
    }
  }

  // Run the blocks one after another, in an order drawn from the seed.
  std::vector<uint64_t> order(grid.count());
  for (uint64_t i = 0; i < order.size(); ++i) order[i] = i;
  if (settings.seed) std::shuffle(order.begin(), order.end(), block.random);
  for (const uint64_t number : order) {
    block.index = {static_cast<unsigned>(number % grid.x), static_cast<unsigned>(number / grid.x % grid.y),
                   static_cast<unsigned>(number / grid.x / grid.y)};
    run_block(program, block);
  }
  ++clock_;
  warps_ = std::move(block.warps);
}

// Runs all threads of the block to their end.
void Machine::run_block(Program& program, Block& block) {
  // Reset: memory of the block and all registers but constants and special registers are undefined.
  block.block_time = block.time = ++clock_;
  block.shared.define(0, block.shared.size, false);
  block.local.define(0, block.local.size, false);
  const uint64_t count = block.threads.count();
  for (Warp& warp : block.warps) {
    warp.block = &block;
    const uint64_t lanes = std::min<uint64_t>(32, count - static_cast<uint64_t>(warp.first_thread));
    warp.ready = lanes == 32 ? ~0u : (1u << lanes) - 1;
    warp.undefined_load.clear();
    warp.waiting = 0, warp.finished = 0, warp.carry = 0, warp.time = 0;
    warp.pc.fill(block.kernel->begin);
    warp.copy_group.fill(0);
    for (auto& callers : warp.callers) callers.clear();
    for (auto& copies : warp.copies) copies.clear();
    warp.defined.assign(block.kernel->slots, 0);
    std::fill_n(warp.defined.begin(), std::size_t(kSpecials), ~0u);
    for (const Constant& constant : block.kernel->constants) warp.defined[constant.slot] = ~0u;
    for (unsigned lane = 0; lane < 32; ++lane) {
      const unsigned thread = static_cast<unsigned>(warp.first_thread) + lane;
      const auto& [x, y, z] = block.threads;
      const unsigned values[kSpecials] = {
          thread % x,   thread / x % y, thread / x / y, x,   y, z, block.index.x, block.index.y, block.index.z,
          block.grid.x, block.grid.y,   block.grid.z,   lane};
      for (uint32_t slot = 0; slot < kSpecials; ++slot) warp.slot<uint32_t>(slot)[lane] = values[slot];
    }
  }

  // Let one warp at a time run for a few turns, as long as any can. If none can, either all threads wait at a barrier
  // of the block, or they are deadlocked.
  const bool shuffled = block.settings.seed != 0;
  std::vector<Warp*> able;
  while (true) {
    able.clear();
    bool alive = false;
    for (Warp& warp : block.warps) {
      if (warp.ready) able.push_back(&warp);
      alive |= warp.ready || warp.waiting;
    }
    if (!alive) return;
    if (able.empty()) {
      if (release_barrier(block)) continue;
      for (const Warp& warp : block.warps) {
        if (!warp.waiting) continue;
        const int lane = __builtin_ctz(warp.waiting);
        throw Fault(where(program, block, warp, lane, warp.pc[lane]) + "deadlock" + who_waits(program, block));
      }
    }
    Warp& warp = *able[shuffled ? block.random() % able.size() : 0];
    unsigned turns = shuffled ? block.random() % 16 + 1 : ~0u;
    while (turns-- && step(program, warp, shuffled ? block.random() % 256 + 1 : ~0u)) {
    }
  }
}

// Picks lanes that are at the same instruction and runs them for up to `quantum` instructions, or until they diverge,
// wait, end, or reach an instruction at which other lanes are. Returns false if no lane of the warp can run.
bool Machine::step(Program& program, Warp& warp, unsigned quantum) {
  if (!warp.ready) return false;
  Block& block = *warp.block;
  // Usually the lanes with the lowest program counter, so that diverged lanes converge again; with a seed, sometimes
  // any other lanes, or only some of those at one instruction.
  uint32_t pc = ~0u;
  for (uint32_t left = warp.ready; left; left &= left - 1) pc = std::min(pc, warp.pc[__builtin_ctz(left)]);
  const unsigned dice = block.settings.seed ? block.random() % 32 : 31;
  if (dice < 4) {
    int skip = static_cast<int>(block.random() % unsigned(__builtin_popcount(warp.ready)));
    uint32_t left = warp.ready;
    while (skip--) left &= left - 1;
    pc = warp.pc[__builtin_ctz(left)];
  }
  uint32_t lanes = 0, other_pc = ~0u;
  for (uint32_t left = warp.ready; left; left &= left - 1) {
    const int lane = __builtin_ctz(left);
    if (warp.pc[lane] == pc) {
      lanes |= 1u << lane;
    } else if (warp.pc[lane] > pc) {
      other_pc = std::min(other_pc, warp.pc[lane]);
    }
  }
  if (dice < 2) {
    const uint32_t some = lanes & static_cast<uint32_t>(block.random());
    if (some && some != lanes)
      lanes = some, other_pc = ~0u, quantum = std::min<unsigned>(quantum, block.random() % 8 + 1);
  }

  // Run them. `pc` is their common program counter; `park` writes it back.
  const auto park = [&] { each_lane(lanes, [&](int lane) { warp.pc[lane] = pc; }); };
  while (quantum--) {
    const Instruction& instruction = program.code[pc];
    warp.at_pc = pc;
    uint32_t active = lanes;
    warp.lane = __builtin_ctz(lanes);
    try {
      // The guard (@p) selects the active lanes.
      if (instruction.guard >= 0) {
        const uint32_t slot = instruction.slots[static_cast<std::size_t>(instruction.guard)];
        if (lanes & ~warp.defined[slot]) {
          warp.lane = __builtin_ctz(lanes & ~warp.defined[slot]);
          throw Fault(undefined_register(warp));
        }
        active &= instruction.negated ? ~warp.predicate(slot) : warp.predicate(slot);
      }
      if (active) program.executed[pc] = true;
      // Control flow.
      switch (instruction.flow) {
        case Flow::next: break;
        case Flow::branch:
          if (active == lanes) {
            pc = instruction.target;
          } else if (active) {
            each_lane(active, [&](int lane) { warp.pc[lane] = instruction.target; });
            each_lane(lanes & ~active, [&](int lane) { warp.pc[lane] = pc + 1; });
            return true;
          } else {
            ++pc;
          }
          if (pc >= other_pc) return park(), true;
          continue;
        case Flow::call:
          each_lane(lanes, [&](int lane) { warp.callers[lane].push_back(pc + 1); });
          pc = instruction.target;
          continue;
        case Flow::leave:
          ++pc;
          park();
          each_lane(active, [&](int lane) {
            if (warp.callers[lane].empty()) {
              warp.ready &= ~(1u << lane), warp.finished |= 1u << lane;
            } else {
              warp.pc[lane] = warp.callers[lane].back();
              warp.callers[lane].pop_back();
            }
          });
          return true;
        case Flow::meet:
        case Flow::barrier:
          each_lane(lanes, [&](int lane) { warp.pc[lane] = pc + !(active >> lane & 1); });
          if (!active) {
            ++pc;
            continue;
          }
          warp.ready &= ~active, warp.waiting |= active;
          each_lane(active, [&](int lane) { warp.members[lane] = ~0u; });
          if (instruction.flow == Flow::meet) meet(program, warp, pc);
          return true;
      }
      // Everything else.
      const uint32_t undefined = undefined_lanes(warp, instruction, active);
      if (active) {
        const Rounding rounding(instruction.rounding);
        instruction.execute(warp, instruction, active);
      }
      define_results(warp, instruction, active, undefined);
    } catch (const Fault& fault) {
      throw Fault(where(program, block, warp, warp.lane, pc) + fault.what());
    }
    if (++pc >= other_pc) break;
  }
  park();
  return true;
}

// Called when lanes arrive at an instruction for several lanes: executes it for every mask of lanes that are all there.
void Machine::meet(Program& program, Warp& warp, uint32_t pc) {
  const Instruction& instruction = program.code[pc];
  const auto fail = [&](int lane, const std::string& why) {
    warp.lane = lane;
    throw Fault(why);
  };
  uint32_t here = 0;
  for (uint32_t left = warp.waiting; left; left &= left - 1) {
    const int lane = __builtin_ctz(left);
    if (warp.pc[lane] == pc) here |= 1u << lane;
  }
  uint32_t done = 0;  // lanes that have executed it
  for (uint32_t left = here; left; left &= left - 1) {
    const int lane = __builtin_ctz(left);
    if (done >> lane & 1) continue;
    // The mask that the lane names must contain the lane itself and no lane that has ended.
    uint32_t& members = warp.members[lane];
    if (instruction.members >= 0) {
      const uint32_t slot = instruction.slots[static_cast<std::size_t>(instruction.members)];
      if (!(warp.defined[slot] >> lane & 1)) fail(lane, "the mask of lanes was never set");
      members = warp.slot<uint32_t>(slot)[lane];
    }
    if (!(members >> lane & 1)) fail(lane, "is not in its own mask of lanes " + hexadecimal(members));
    const uint32_t all = warp.ready | warp.waiting | warp.finished;
    const uint32_t missing = members & (warp.finished | ~all);
    if (missing) {
      fail(lane, "waits for lanes " + hexadecimal(members) + ", of which threads " +
                     describe_lanes(missing, warp.first_thread) + " have ended or never were");
    }
    // If all members are here, they must name the same mask; then they execute the instruction together.
    if ((members & here) != members) continue;
    uint32_t agreeing = 0;
    each_lane(members, [&](int other) {
      const uint32_t theirs =
          instruction.members >= 0
              ? warp.slot<uint32_t>(instruction.slots[static_cast<std::size_t>(instruction.members)])[other]
              : ~0u;
      if (theirs == members) agreeing |= 1u << other;
    });
    if (agreeing != members) {
      fail(lane, "the lanes of mask " + hexadecimal(members) + " don't name the same mask");
    }
    const uint32_t undefined = undefined_lanes(warp, instruction, members);
    instruction.execute(warp, instruction, members);
    define_results(warp, instruction, members, undefined);
    warp.waiting &= ~members, warp.ready |= members;
    each_lane(members, [&](int other) { warp.pc[other] = pc + 1; });
    done |= members;
  }
}

// If all threads of the block wait at the same barrier, lets them go on and returns true.
bool Machine::release_barrier(Block& block) {
  const Program& program = *block.program;
  for (const Warp& warp : block.warps) {
    if (warp.finished) return false;
    for (int lane = 0; lane < 32; ++lane) {
      if (!(warp.waiting >> lane & 1)) continue;
      const Instruction& instruction = program.code[warp.pc[lane]];
      const int first = __builtin_ctz(warp.waiting);
      // bar.sync is .aligned: all threads of a warp must execute the same instruction. Different warps may wait at
      // different instructions, as long as these name the same barrier.
      if (instruction.flow != Flow::barrier || warp.pc[lane] != warp.pc[first]) return false;
      const Instruction& anywhere = program.code[block.warps[0].pc[0]];
      if (anywhere.flow != Flow::barrier || anywhere.offset != instruction.offset) return false;
    }
  }
  for (Warp& warp : block.warps) {
    each_lane(warp.waiting, [&](int lane) { ++warp.pc[lane]; });
    warp.ready = warp.waiting, warp.waiting = 0;
  }
  block.time = ++clock_;
  return true;
}

}  // namespace ptx
