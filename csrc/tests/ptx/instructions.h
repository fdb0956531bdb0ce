// A reader for each kind of instruction: it fills in slots, options and what runs.
#pragma once

#include "machine.h"

namespace ptx {

// instructions_arithmetic.cpp
void read_carry(Statement& statement, Instruction& into);
void read_arithmetic(Statement& statement, Instruction& into);

// instructions_memory.cpp
void read_memory(Statement& statement, Instruction& into);
void read_update(Statement& statement, Instruction& into);
void read_async_copy(Statement& statement, Instruction& into);
void hand_over(Warp& warp, const Instruction& in, uint32_t active);

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
