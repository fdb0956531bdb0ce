// Helpers of the readers (instructions.h): they append the arguments of a statement to the slots of an instruction.
#pragma once

#include <string>
#include <vector>

#include "machine.h"

namespace ptx {

// Bytes of a type such as "u32"; 0 for a predicate, -1 for an unknown type.
int width_of(const std::string& type);
// Append a result, an operand, or an address. All results have to come before all operands, and an address last. A
// constant becomes a slot of `width` bytes.
void result(Statement& statement, Instruction& into, const Argument& argument);
void operand(Statement& statement, Instruction& into, const Argument& argument, int width);
void address(Statement& statement, Instruction& into, const Argument& argument);
// The elements of a vector argument {a, b, ...}; other arguments are their own single element.
std::vector<Argument> elements(const Argument& argument);
// The address of a lane: the value of slots[operand] plus the instruction's offset.
uint64_t address_at(Warp& warp, const Instruction& in, std::size_t operand, int lane);
// The memory that a statement names; generic if none.
Space space_of(const Statement& statement);
// The statement's rounding mode, as std::fesetround takes it.
int rounding_of(const Statement& statement);

}  // namespace ptx
