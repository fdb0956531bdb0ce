// Reading the arguments of a statement into the slots of an instruction.
#pragma once

#include <string>
#include <vector>

#include "machine.h"

namespace ptx {

// Bytes of a type; 0: a predicate, -1: not a type of ours.
int width_of(const std::string& type);
// Adds a result, an operand, and an address, which comes as the last operand. A constant becomes a slot of `width`
// bytes. All results come before all operands.
void result(Statement& statement, Instruction& into, const Argument& argument);
void operand(Statement& statement, Instruction& into, const Argument& argument, int width);
void address(Statement& statement, Instruction& into, const Argument& argument);
// The parts of a vector, or the argument alone.
std::vector<Argument> elements(const Argument& argument);
// The address that a lane gives as an operand.
uint64_t address_at(Warp& warp, const Instruction& in, std::size_t operand, int lane);
Space space_of(const Statement& statement);
// fesetround's mode.
int rounding_of(const Statement& statement);

}  // namespace ptx
