// The CUDA runtime calls that csrc/cuda makes, answered by the machine: the launchers link against these instead of
// libcudart, so grids, blocks and arguments are theirs. A launch runs at once; a Fault in it goes on as an exception.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "machine.h"

namespace ptx {

// The PTX of one csrc/cuda/*.cu by architecture. A device gets the newest that is not newer than itself.
struct DeviceImage {
  std::string source;
  std::map<int, std::string> texts;
  std::map<int, std::unique_ptr<Program>> programs;  // of those that were asked for

  void replace(int architecture, const std::string& text);
  Program& program_for(int architecture);
};

Machine& machine();
// By source without ".cu", from the folder of images that CMake wrote.
std::map<std::string, DeviceImage>& images();
// The architecture of the one device that launchers see: 70, 75 or 80.
void set_architecture(int architecture);

}  // namespace ptx
