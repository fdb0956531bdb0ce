// Chooses the reader of each instruction. The readers follow PTX ISA 8.8, "Instruction Set".
#include "instructions.h"

#include <string>
#include <unordered_map>

namespace ptx {
namespace {

// Executes an instruction without effect.
void nothing(Warp&, const Instruction&, uint32_t) {}

}  // namespace

void decode(Statement& statement, Instruction& into) {
  using Reader = void (*)(Statement&, Instruction&);
  static const std::unordered_map<std::string, Reader> readers = {
      {"ld", read_memory},
      {"ldu", read_memory},
      {"st", read_memory},
      {"atom", read_atomic},
      {"red", read_atomic},
      {"mov", read_move},
      {"cvta", read_convert_address},
      {"cvt", read_convert},
      {"setp", read_compare},
      {"selp", read_select},
      {"addc", read_carry},
      {"subc", read_carry},
      {"shfl", read_shuffle},
      {"vote", read_vote},
      {"activemask", read_vote},
      {"redux", read_reduce},
      {"bar", read_barrier},
      {"barrier", read_barrier},
      {"mma", read_multiply},
      {"ldmatrix", read_load_matrices},
  };
  const std::string& name = statement.opcode[0];
  into.execute = nothing;
  if (name == "copy_argument") {
    into.execute = copy_argument;
  } else if (name == "ret" || name == "exit") {
    into.flow = Flow::leave;
  } else if (name == "trap") {
    into.execute = [](Warp&, const Instruction&, uint32_t) { throw Fault("the kernel traps"); };
  } else if (name == "membar" || name == "fence" || name == "prefetch" || name == "prefetchu") {
    // No effect: the interpreter executes memory accesses in program order, and the race check counts only barriers.
  } else if (name == "cp" && statement.has("async")) {
    read_async_copy(statement, into);
  } else if (statement.has("cc")) {
    read_carry(statement, into);
  } else if (statement.opcode.back() == "pred" && name != "mov") {
    read_predicate_logic(statement, into);
  } else if (const auto reader = readers.find(name); reader != readers.end()) {
    reader->second(statement, into);
  } else {
    read_arithmetic(statement, into);
  }
}

}  // namespace ptx