// The parser of PTX: PTX ISA 8.8, "Syntax", "State Spaces, Types, and Variables" and "Directives", as far as NVRTC and
// Triton use them. It is a recursive-descent parser: each member function reads one construct of the grammar from the
// tokens and they call each other, so the file stays in one piece.
#include "program.h"

#include <algorithm>
#include <cctype>
#include <cstring>
#include <functional>
#include <set>
#include <sstream>

namespace ptx {
namespace {

struct Token {
  std::string text;
  int line;
};

bool begins_name(char c) {
  return std::isalpha(static_cast<unsigned char>(c)) || c == '_' || c == '$' || c == '%' || c == '.';
}
bool continues_name(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '$' || c == '%' || c == '.';
}

std::vector<std::string> split_lines(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

// Splits the text into tokens. Comments, debug sections and directives that take a whole line (.loc, .version) are
// dropped; `architecture` receives the number of .target.
std::vector<Token> tokenize(const std::vector<std::string>& lines, int& architecture) {
  static const std::set<std::string> to_end_of_line = {".loc",    ".file",         ".version",
                                                       ".target", ".address_size", ".pragma"};
  std::vector<Token> tokens;
  bool in_comment = false, section = false;
  int depth = 0;  // of nested braces in a debug section
  for (std::size_t number = 0; number < lines.size(); ++number) {
    const std::string& line = lines[number];
    for (std::size_t i = 0; i < line.size();) {
      // Skip comments and white space.
      if (in_comment || line.compare(i, 2, "/*") == 0) {
        const std::size_t end = line.find("*/", i);
        in_comment = end == std::string::npos;
        i = in_comment ? line.size() : end + 2;
        continue;
      }
      if (line.compare(i, 2, "//") == 0) break;
      const char c = line[i];
      std::size_t end = i + 1;
      if (std::isspace(static_cast<unsigned char>(c))) {
        i = end;
        continue;
      }
      // Take one token: a name or number, a string, or a single character.
      const bool number_follows = c == '-' && end < line.size() && std::isdigit(static_cast<unsigned char>(line[end]));
      if (begins_name(c) || std::isdigit(static_cast<unsigned char>(c)) || number_follows) {
        while (end < line.size() && continues_name(line[end])) ++end;
      } else if (c == '"') {
        end = line.find('"', i + 1) + 1;
      }
      const std::string text = line.substr(i, end - i);
      i = end;
      // Drop it inside a debug section, and drop directives with the rest of their line.
      if (section) {
        depth += text == "{" ? 1 : text == "}" ? -1 : 0;
        if (text == "}" && depth == 0) section = false;
        continue;
      }
      if (text == ".section") {
        section = true;
        continue;
      }
      if (to_end_of_line.count(text)) {
        const std::size_t target = line.find("sm_");
        if (text == ".target" && target != std::string::npos) architecture = std::atoi(line.c_str() + target + 3);
        break;
      }
      tokens.push_back({text, static_cast<int>(number) + 1});
    }
  }
  return tokens;
}

// Bytes of a type such as ".u32"; 0 for .pred, -1 if it is no type.
int type_width(const std::string& type) {
  if (type == ".pred") return 0;
  const std::size_t digit = type.find_first_of("0123456789");
  return digit == std::string::npos ? -1 : std::atoi(type.c_str() + digit) / 8;
}

int64_t align_up(int64_t value, int64_t align) { return (value + align - 1) / align * align; }

struct Register {
  uint32_t slot;
  int width;
};

// A variable or parameter.
struct Symbol {
  Space space;
  uint64_t address;
  int64_t size, align;
};

// The names declared in one block `{ ... }`; a stack of scopes holds those of the blocks around it.
struct Scope {
  std::map<std::string, Register> registers;
  std::map<std::string, Symbol> symbols;
};

class Parser;

struct ParsedStatement : Statement {
  Parser* parser = nullptr;
  uint32_t constant(uint64_t bits, int width) override;
};

// A copy between a caller's variable and a called function's parameter. The parameter's address is filled in at the
// end, since the function may be defined later.
struct ArgumentCopy {
  uint32_t at;  // index of the copying instruction in Program::code
  std::string function;
  std::size_t index;  // of the parameter or result
  bool result;        // copies a result back
};

class Parser {
 public:
  explicit Parser(const std::string& text) : program_(std::make_unique<Program>()) {
    program_->lines = split_lines(text);
    tokens_ = tokenize(program_->lines, program_->architecture);
  }

  // Parses the whole text.
  std::unique_ptr<Program> run() {
    scopes_.emplace_back();
    // First global variables and functions; kernels are skipped. Each kernel's slots and local memory start behind
    // those of all functions.
    std::vector<std::size_t> kernels;
    while (at_ < tokens_.size()) {
      const std::string& word = peek();
      if (word == ".visible" || word == ".weak" || word == ".extern" || word == ".common") {
        ++at_;
      } else if (word == ".entry") {
        kernels.push_back(at_++);
        skip_body();
      } else if (word == ".func") {
        function(false);
      } else {
        variable();
      }
    }
    // Then the kernels, all with the same first slot of their own.
    function_slots_ = next_slot_, function_local_ = next_local_;
    for (std::size_t kernel : kernels) {
      at_ = kernel;
      next_slot_ = function_slots_, next_local_ = function_local_;
      function(true);
    }
    // A kernel's constants include those of the functions that it may call.
    for (Function& function : program_->functions) {
      if (function.kernel) continue;
      for (Function& kernel : program_->functions) {
        if (!kernel.kernel) continue;
        kernel.constants.insert(kernel.constants.end(), function.constants.begin(), function.constants.end());
      }
    }
    resolve();
    program_->executed.assign(program_->code.size(), false);
    return std::move(program_);
  }

  // See Statement::constant.
  uint32_t constant(uint64_t bits, int width) {
    const auto [found, fresh] = constants_.try_emplace({bits, width}, next_slot_);
    if (fresh) current_->constants.push_back({next_slot_++, bits, width});
    return found->second;
  }

 private:
  // Throws Fault at the current token.
  [[noreturn]] void refuse(const std::string& why) const {
    const int line = tokens_[std::min(at_, tokens_.size() - 1)].line;
    throw Fault("PTX line " + std::to_string(line) + ": " + why + ": " +
                program_->lines[static_cast<std::size_t>(line - 1)]);
  }
  const std::string& peek(std::size_t ahead = 0) const {
    static const std::string nothing;
    return at_ + ahead < tokens_.size() ? tokens_[at_ + ahead].text : nothing;
  }
  std::string take() {
    if (at_ >= tokens_.size()) refuse("the text ends too early");
    return tokens_[at_++].text;
  }
  bool accept(const char* text) {
    if (peek() != text) return false;
    ++at_;
    return true;
  }
  void expect(const char* text) {
    if (!accept(text)) refuse(std::string("expected ") + text + ", got " + peek());
  }
  int64_t integer() {
    const std::string text = take();
    return static_cast<int64_t>(std::stoull(text[0] == '-' ? text.substr(1) : text, nullptr, 0)) *
           (text[0] == '-' ? -1 : 1);
  }

  // Skips everything up to the end of a function's body.
  void skip_body() {
    while (peek() != "{") take();
    int depth = 0;
    do {
      depth += peek() == "{" ? 1 : peek() == "}" ? -1 : 0;
      take();
    } while (depth > 0);
  }

  // One parameter: `.param .align 8 .b8 name[136]` or `.param .u64 .ptr .global .align 1 name`. In the second form
  // .align is that of the memory that is pointed to, not that of the parameter.
  Parameter parameter() {
    expect(".param");
    Parameter parsed{"", 1, 0, 0};
    int64_t given = 0;
    while (peek()[0] == '.') {
      const std::string word = take();
      if (word == ".align") {
        const bool of_pointer = parsed.align > 0 && peek(1)[0] != '.';
        const int64_t align = integer();
        if (!of_pointer) given = align;
      } else if (const int width = type_width(word); width > 0) {
        parsed.size = parsed.align = width;
      }
    }
    parsed.name = take();
    if (accept("[")) {
      parsed.size *= integer();
      expect("]");
    }
    if (given > 0) parsed.align = given;
    return parsed;
  }

  // A list of parameters in parentheses, placed from offset `next` on.
  std::vector<Parameter> parameters(Space space, int64_t& next) {
    std::vector<Parameter> all;
    if (!accept("(")) return all;
    while (!accept(")")) {
      Parameter parsed = parameter();
      parsed.offset = align_up(next, parsed.align);
      next = parsed.offset + parsed.size;
      scopes_.back().symbols[parsed.name] = {space, static_cast<uint64_t>(parsed.offset), parsed.size, parsed.align};
      all.push_back(parsed);
      accept(",");
    }
    return all;
  }

  // A kernel (.entry) or function (.func).
  void function(bool kernel) {
    expect(kernel ? ".entry" : ".func");
    Function parsed;
    parsed.kernel = kernel;
    parsed.begin = static_cast<uint32_t>(program_->code.size());
    constants_.clear(), labels_.clear(), jumps_.clear();
    current_ = &parsed;
    next_shared_ = module_shared_;
    scopes_.emplace_back();
    int64_t parameter_bytes = 0;
    const Space space = kernel ? Space::param : Space::local;
    int64_t& next = kernel ? parameter_bytes : next_local_;
    if (!kernel) parsed.results = parameters(space, next);
    parsed.name = take();
    parsed.parameters = parameters(space, next);
    while (peek() != "{" && peek() != ";") {
      const std::string word = take();
      if (word == ".maxntid" || word == ".reqntid") {
        parsed.most_threads = integer();
        while (accept(",")) parsed.most_threads *= integer();
      } else if (word[0] != '.' && !std::isdigit(static_cast<unsigned char>(word[0])) && word != ",") {
        refuse("expected a directive of a function, got " + word);
      }
    }
    if (accept(";")) {  // a declaration
      scopes_.pop_back();
      return;
    }
    body();
    // Now all labels are known.
    for (const auto& [at, label] : jumps_) {
      const auto found = labels_.find(label);
      if (found == labels_.end()) refuse("no label " + label);
      program_->code[at].target = found->second;
    }
    scopes_.pop_back();
    parsed.end = static_cast<uint32_t>(program_->code.size());
    parsed.slots = next_slot_;
    parsed.shared_bytes = next_shared_;
    parsed.local_bytes = next_local_;
    program_->functions.push_back(parsed);
    if (!kernel) module_shared_ = next_shared_;
  }

  // A block of declarations, labels, statements and nested blocks.
  void body() {
    expect("{");
    scopes_.emplace_back();
    while (!accept("}")) {
      if (peek() == "{") {
        body();
      } else if (peek() == ".reg") {
        registers();
      } else if (peek()[0] == '.') {
        variable();
      } else if (peek(1) == ":") {
        labels_[take()] = static_cast<uint32_t>(program_->code.size());
        take();
      } else {
        statement();
      }
    }
    scopes_.pop_back();
  }

  // `.reg .b32 %r<10>;` declares %r0 to %r9.
  void registers() {
    expect(".reg");
    const std::string type = take();
    const int width = type_width(type);
    if (width < 0) refuse("no type of registers: " + type);
    do {
      const std::string name = take();
      if (accept("<")) {
        const int64_t count = integer();
        expect(">");
        for (int64_t i = 0; i < count; ++i) scopes_.back().registers[name + std::to_string(i)] = {next_slot_++, width};
      } else {
        scopes_.back().registers[name] = {next_slot_++, width};
      }
    } while (accept(","));
    expect(";");
  }

  // A variable of any memory. Shared variables are laid out in the order of their declaration; one without a size is
  // the dynamic shared memory, which begins behind them.
  void variable() {
    const std::string space = take();
    // Parameters of a call that are declared in a body: in local memory.
    if (space == ".param") {
      --at_;
      Parameter parsed = parameter();
      expect(";");
      parsed.offset = align_up(next_local_, parsed.align);
      next_local_ = parsed.offset + parsed.size;
      scopes_.back().symbols[parsed.name] = {Space::local, static_cast<uint64_t>(parsed.offset), parsed.size,
                                             parsed.align};
      return;
    }
    // Alignment, type, name, size, and initial value.
    int64_t align = 0, width = 1;
    while (peek()[0] == '.') {
      const std::string word = take();
      if (word == ".align") {
        align = integer();
      } else if (type_width(word) > 0) {
        width = type_width(word);
      }
    }
    const std::string name = take();
    align = std::max(align, width);
    int64_t size = width;
    while (accept("[")) {
      size *= peek() == "]" ? 0 : integer();
      expect("]");
    }
    std::vector<uint8_t> bytes(static_cast<std::size_t>(size), 0);
    if (accept("=")) initial_value(bytes, static_cast<std::size_t>(width));
    expect(";");
    // Its place.
    Symbol& symbol = scopes_.back().symbols[name];
    symbol.size = size, symbol.align = align;
    if (space == ".shared") {
      int64_t& next = scopes_.size() == 1 ? module_shared_ : next_shared_;
      symbol.space = Space::shared;
      symbol.address = static_cast<uint64_t>(align_up(next, size == 0 ? 1024 : align));
      next = static_cast<int64_t>(symbol.address) + size;
    } else if (space == ".local") {
      symbol.space = Space::local;
      symbol.address = static_cast<uint64_t>(align_up(next_local_, align));
      next_local_ = static_cast<int64_t>(symbol.address) + size;
    } else if (space == ".global" || space == ".const") {
      auto parsed = std::make_unique<Variable>();
      parsed->name = name, parsed->read_only = space == ".const";
      parsed->bytes.resize(bytes.size() + static_cast<std::size_t>(align));
      const uint64_t start = reinterpret_cast<uint64_t>(parsed->bytes.data());
      parsed->padding = static_cast<std::size_t>(align_up(static_cast<int64_t>(start), align)) - start;
      std::memcpy(parsed->bytes.data() + parsed->padding, bytes.data(), bytes.size());
      symbol.space = Space::global, symbol.address = start + parsed->padding;
      program_->variables.push_back(std::move(parsed));
    } else {
      refuse("unknown directive " + space);
    }
  }

  void initial_value(std::vector<uint8_t>& bytes, std::size_t width) {
    const bool list = accept("{");
    std::size_t at = 0;
    do {
      const Argument value = argument();
      if (at + width > bytes.size()) refuse("more values than room");
      std::memcpy(&bytes[at], &value.bits, width);
      at += width;
    } while (list && accept(","));
    if (list) expect("}");
  }

  // The register or symbol of this name in the innermost scope that has one; nullptr if none has.
  template <class Found>
  const Found* find(const std::string& name, std::map<std::string, Found> Scope::* in) const {
    for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
      const auto& names = (*scope).*in;
      if (const auto found = names.find(name); found != names.end()) return &found->second;
    }
    return nullptr;
  }

  // One argument: a vector, an address, a register, a variable (its address), a number, or a name.
  Argument argument() {
    static const std::map<std::string, uint32_t> specials = {
        {"%tid.x", kTidX},     {"%tid.y", kTidY},       {"%tid.z", kTidZ},       {"%ntid.x", kNtidX},
        {"%ntid.y", kNtidY},   {"%ntid.z", kNtidZ},     {"%ctaid.x", kCtaidX},   {"%ctaid.y", kCtaidY},
        {"%ctaid.z", kCtaidZ}, {"%nctaid.x", kNctaidX}, {"%nctaid.y", kNctaidY}, {"%nctaid.z", kNctaidZ},
        {"%laneid", kLane}};
    Argument parsed;
    if (accept("{")) {
      parsed.kind = Argument::vector;
      while (!accept("}")) {
        parsed.parts.push_back(argument());
        accept(",");
      }
      return parsed;
    }
    if (accept("[")) {
      parsed.kind = Argument::address;
      parsed.parts.push_back(argument());
      parsed.space = parsed.parts[0].space;
      while (!accept("]")) {
        accept("+");
        parsed.offset += integer();
      }
      return parsed;
    }
    parsed.negated = accept("!");
    const std::string text = take();
    if (text == "_") return parsed;
    if (const auto special = specials.find(text); special != specials.end()) {
      parsed.kind = Argument::slot, parsed.at = special->second, parsed.width = 4;
    } else if (const Register* found = find(text, &Scope::registers)) {
      parsed.kind = Argument::slot, parsed.at = found->slot, parsed.width = found->width;
    } else if (const Symbol* symbol = find(text, &Scope::symbols)) {
      parsed.kind = Argument::number, parsed.bits = symbol->address, parsed.space = symbol->space;
    } else if (text.compare(0, 2, "0f") == 0 || text.compare(0, 2, "0F") == 0) {
      parsed.kind = Argument::number, parsed.bits = std::stoul(text.substr(2), nullptr, 16), parsed.float_width = 4;
    } else if (text.compare(0, 2, "0d") == 0 || text.compare(0, 2, "0D") == 0) {
      parsed.kind = Argument::number, parsed.bits = std::stoull(text.substr(2), nullptr, 16), parsed.float_width = 8;
    } else if (std::isdigit(static_cast<unsigned char>(text[0])) || text[0] == '-') {
      --at_;
      parsed.kind = Argument::number, parsed.bits = static_cast<uint64_t>(integer());
    } else {
      parsed.kind = Argument::name, parsed.text = text;
    }
    return parsed;
  }

  // Appends an empty instruction.
  Instruction& emit(int line) {
    program_->code.emplace_back();
    program_->code.back().line = line;
    return program_->code.back();
  }

  // `@guard opcode argument, ...;`
  void statement() {
    ParsedStatement parsed;
    parsed.parser = this;
    parsed.line = tokens_[at_].line;
    Argument guard;
    if (accept("@")) guard = argument();
    std::istringstream opcode(take());
    for (std::string part; std::getline(opcode, part, '.');) parsed.opcode.push_back(part);
    // Parts with a double colon, such as `shared::cta`, which the tokenizer has split.
    while (accept(":")) {
      expect(":");
      std::istringstream rest(take());
      std::string part;
      std::getline(rest, part, '.');
      parsed.opcode.back() += "::" + part;
      while (std::getline(rest, part, '.')) parsed.opcode.push_back(part);
    }
    if (parsed.opcode[0] == "call") {
      if (guard.kind == Argument::slot) refuse("a call with a guard");
      call(parsed);
      return;
    }
    while (!accept(";")) {
      parsed.arguments.push_back(argument());
      if (accept("|")) parsed.arguments.push_back(argument());
      if (peek() != ";") expect(",");
    }
    Instruction& instruction = emit(parsed.line);
    if (parsed.opcode[0] == "bra") {
      instruction.flow = Flow::branch;
      jumps_.emplace_back(program_->code.size() - 1, parsed.arguments.at(0).text);
    } else {
      decode(parsed, instruction);
    }
    if (guard.kind == Argument::slot) {
      instruction.guard = static_cast<int16_t>(instruction.slots.size());
      instruction.slots.push_back(guard.at);
      instruction.widths.push_back(0);
      instruction.negated = guard.negated;
    }
  }

  // `call.uni (result), function, (argument, ...);` becomes copies of the arguments, the call, and copies of the
  // results.
  void call(const Statement& parsed) {
    const auto names = [&] {
      std::vector<std::string> all;
      if (!accept("(")) return all;
      while (!accept(")")) {
        all.push_back(take());
        accept(",");
      }
      return all;
    };
    const auto copy_arguments = [&](const std::string& function, const std::vector<std::string>& given, bool result) {
      for (std::size_t i = 0; i < given.size(); ++i) {
        const Symbol* symbol = find(given[i], &Scope::symbols);
        if (symbol == nullptr || symbol->space != Space::local) refuse("no parameter " + given[i]);
        Instruction& copy = emit(parsed.line);
        copy.from_text = false;
        copy.offset = static_cast<int64_t>(symbol->address);
        copies_.push_back({static_cast<uint32_t>(program_->code.size() - 1), function, i, result});
      }
    };
    const std::vector<std::string> results = names();
    accept(",");
    const std::string function = take();
    std::vector<std::string> given;
    if (accept(",")) given = names();
    expect(";");
    copy_arguments(function, given, false);
    emit(parsed.line).flow = Flow::call;
    calls_.emplace_back(program_->code.size() - 1, function);
    copy_arguments(function, results, true);
  }

  // Fills in the targets of calls and the addresses of the parameters that are copied.
  void resolve() {
    const auto find_function = [&](const std::string& name) -> const Function& {
      for (const Function& function : program_->functions) {
        if (function.name == name) return function;
      }
      throw Fault("PTX calls a function that it doesn't define: " + name);
    };
    for (const auto& [at, name] : calls_) program_->code[at].target = find_function(name).begin;
    for (const ArgumentCopy& argument : copies_) {
      const Function& function = find_function(argument.function);
      const Parameter& parameter = (argument.result ? function.results : function.parameters).at(argument.index);
      Instruction& copy = program_->code[argument.at];
      copy.target = static_cast<uint32_t>(parameter.offset);
      copy.width = static_cast<uint8_t>(parameter.size);
      copy.options[0] = argument.result;
      ParsedStatement statement;
      statement.parser = this;
      statement.opcode = {"copy_argument"};
      decode(statement, copy);
    }
    check_recursion();
  }

  // Refuses recursion: the two activations of a function would overwrite each other's slots.
  void check_recursion() const {
    std::map<uint32_t, std::set<uint32_t>> callees;
    for (const auto& [at, name] : calls_) {
      callees[program_->function_at(static_cast<uint32_t>(at)).begin].insert(program_->code[at].target);
    }
    std::set<uint32_t> above;
    const std::function<void(uint32_t)> visit = [&](uint32_t function) {
      if (!above.insert(function).second) throw Fault("PTX has a recursive function, which is not supported");
      for (uint32_t callee : callees[function]) visit(callee);
      above.erase(function);
    };
    for (const Function& function : program_->functions) visit(function.begin);
  }

  std::unique_ptr<Program> program_;
  std::vector<Token> tokens_;
  std::size_t at_ = 0;                                              // the next token
  std::vector<Scope> scopes_;                                       // innermost last
  Function* current_ = nullptr;                                     // the function that is being parsed
  std::map<std::pair<uint64_t, int>, uint32_t> constants_;          // its constants: (bits, width) -> slot
  std::map<std::string, uint32_t> labels_;                          // its labels: indices of instructions
  std::vector<std::pair<std::size_t, std::string>> jumps_, calls_;  // instruction and the name that it jumps to
  std::vector<ArgumentCopy> copies_;
  uint32_t next_slot_ = kSpecials, function_slots_ = 0;  // next free slot; slots of all functions
  int64_t next_shared_ = 0, module_shared_ = 0;  // next free byte of shared memory; that of module-scope variables
  int64_t next_local_ = 0, function_local_ = 0;  // next free byte of local memory; that of all functions
};

uint32_t ParsedStatement::constant(uint64_t bits, int width) { return parser->constant(bits, width); }

}  // namespace

bool Statement::has(const char* part) const { return std::find(opcode.begin(), opcode.end(), part) != opcode.end(); }

void Statement::refuse(const std::string& why) const {
  std::string name;
  for (const std::string& part : opcode) name += (name.empty() ? "" : ".") + part;
  throw Fault("PTX line " + std::to_string(line) + ": " + name + ": " + why);
}

std::unique_ptr<Program> Program::parse(const std::string& text) { return Parser(text).run(); }

const Function& Program::kernel(const std::string& name) const {
  for (const Function& function : functions) {
    if (function.kernel && function.name == name) return function;
  }
  throw Fault("no kernel " + name + " in this PTX");
}

const Function& Program::function_at(uint32_t pc) const {
  for (const Function& function : functions) {
    if (function.begin <= pc && pc < function.end) return function;
  }
  throw Fault("no function at instruction " + std::to_string(pc));
}

}  // namespace ptx
