// One reader per kind of PTX instruction. It translates the parsed statement into an Instruction: the slots of results
// and operands, options, and the function that executes it. An unknown instruction throws Fault.
#pragma once

#include "machine.h"

namespace ptx {

// instructions_arithmetic.cpp
void read_carry(Statement& statement, Instruction& into);
void read_arithmetic(Statement& statement, Instruction& into);

// instructions_memory.cpp
void read_memory(Statement& statement, Instruction& into);
void read_atomic(Statement& statement, Instruction& into);
void read_async_copy(Statement& statement, Instruction& into);
// Executes a copy of an argument or result between caller and called function; the parser emits it around each call.
void copy_argument(Warp& warp, const Instruction& in, uint32_t active);

// instructions_conversion.cpp
void read_move(Statement& statement, Instruction& into);
void read_convert_address(Statement& statement, Instruction& into);
void read_convert(Statement& statement, Instruction& into);

// instructions_predicate.cpp
void read_compare(Statement& statement, Instruction& into);
void read_select(Statement& statement, Instruction& into);
void read_predicate_logic(Statement& statement, Instruction& into);

// instructions_warp.cpp
void read_shuffle(Statement& statement, Instruction& into);
void read_vote(Statement& statement, Instruction& into);
void read_reduce(Statement& statement, Instruction& into);
void read_barrier(Statement& statement, Instruction& into);

// instructions_matrix.cpp
void read_load_matrices(Statement& statement, Instruction& into);
void read_multiply(Statement& statement, Instruction& into);

}  // namespace ptx
