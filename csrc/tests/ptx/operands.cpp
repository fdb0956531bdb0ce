#include "operands.h"

#include <cfenv>
#include <unordered_map>

#include "values.h"

namespace ptx {
namespace {

// Appends the slot of a register, or that of a constant of `width` bytes.
void add_operand(Statement& statement, Instruction& into, const Argument& argument, int width) {
  uint32_t slot = argument.at;
  int actual = argument.width;
  if (argument.kind == Argument::number) {
    uint64_t bits = argument.bits;
    if (argument.float_width == 8 && width == 4) bits = bit_cast<u32>(static_cast<f32>(bit_cast<f64>(bits)));
    if (width < 8) bits &= (uint64_t{1} << (8 * std::max(width, 1))) - 1;
    slot = statement.constant(bits, actual = width);
  } else if (argument.kind != Argument::slot || argument.negated) {
    statement.refuse("unexpected operand");
  }
  into.slots.push_back(slot);
  into.widths.push_back(static_cast<u8>(actual));
}

}  // namespace

int width_of(const std::string& type) {
  static const std::unordered_map<std::string, int> widths = {
      {"pred", 0},   {"b8", 1},   {"u8", 1},  {"s8", 1},  {"b16", 2}, {"u16", 2}, {"s16", 2},
      {"f16", 2},    {"bf16", 2}, {"b32", 4}, {"u32", 4}, {"s32", 4}, {"f32", 4}, {"f16x2", 4},
      {"bf16x2", 4}, {"b64", 8},  {"u64", 8}, {"s64", 8}, {"f64", 8}};
  const auto found = widths.find(type);
  return found == widths.end() ? -1 : found->second;
}

void result(Statement& statement, Instruction& into, const Argument& argument) {
  if (argument.kind != Argument::slot) statement.refuse("the result is no register");
  add_operand(statement, into, argument, argument.width);
  ++into.written;
}
void operand(Statement& statement, Instruction& into, const Argument& argument, int width) {
  add_operand(statement, into, argument, width);
  ++into.read;
}
void address(Statement& statement, Instruction& into, const Argument& argument) {
  if (argument.kind != Argument::address) statement.refuse("expected an address");
  operand(statement, into, argument.parts[0], 8);
  into.offset = argument.offset;
  into.needed = 1;
}
std::vector<Argument> elements(const Argument& argument) {
  return argument.kind == Argument::vector ? argument.parts : std::vector<Argument>{argument};
}

uint64_t address_at(Warp& warp, const Instruction& in, std::size_t operand, int lane) {
  const uint32_t slot = in.slots[operand];
  const uint64_t base = in.widths[operand] == 8 ? warp.slot<u64>(slot)[lane] : warp.slot<u32>(slot)[lane];
  const uint64_t sum = base + static_cast<uint64_t>(in.offset);
  return in.widths[operand] == 8 ? sum : static_cast<u32>(sum);
}

Space space_of(const Statement& statement) {
  if (statement.has("global") || statement.has("const")) return Space::global;
  if (statement.has("shared") || statement.has("shared::cta")) return Space::shared;
  if (statement.has("local")) return Space::local;
  if (statement.has("param")) return Space::param;
  return Space::generic;
}

int rounding_of(const Statement& statement) {
  if (statement.has("rz") || statement.has("rzi")) return FE_TOWARDZERO;
  if (statement.has("rm") || statement.has("rmi")) return FE_DOWNWARD;
  if (statement.has("rp") || statement.has("rpi")) return FE_UPWARD;
  return FE_TONEAREST;
}

}  // namespace ptx
