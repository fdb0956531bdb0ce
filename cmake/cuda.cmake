# The CUDA half: device code through NVRTC (compile_device_code.py), host launchers against the static CUDA runtime.
# Defines the target seed_fast_cuda (empty without CUDA), SEED_FAST_WITH_CUDA and SEED_FAST_CUDA_REASON.
set(device_compiler ${CMAKE_CURRENT_SOURCE_DIR}/cmake/compile_device_code.py)
set(device_driver_files ${device_compiler} ${CMAKE_CURRENT_SOURCE_DIR}/cmake/cuda_wheels.py)

# Why CUDA is left out, or "". Sets CUDART_INCLUDE and CUDART_STATIC where the runtime is found.
function(seed_fast_find_cuda reason)
  if(SEED_FAST_CUDA STREQUAL "0")
    set(${reason} "switched off (SEED_FAST_CUDA=0)" PARENT_SCOPE)
    return()
  endif()
  execute_process(
    COMMAND ${Python_EXECUTABLE} ${device_compiler} probe
    OUTPUT_VARIABLE probed COMMAND_ERROR_IS_FATAL ANY)
  string(JSON objection GET "${probed}" objection)
  string(JSON include GET "${probed}" include)
  string(JSON library GET "${probed}" cudart_static)
  if(objection AND NOT SEED_FAST_FATBIN)
    set(${reason} "${objection}" PARENT_SCOPE)
    return()
  endif()
  if(NOT library) # prebuilt device code on a machine that has a toolkit instead of the packages
    find_package(CUDAToolkit QUIET)
    set(include ${CUDAToolkit_INCLUDE_DIRS})
    set(library ${CUDA_cudart_static_LIBRARY})
  endif()
  if(NOT EXISTS "${library}")
    set(${reason} "no static CUDA runtime: install nvidia-cuda-runtime-cu12 and nvidia-cuda-nvcc-cu12, or a CUDA toolkit"
        PARENT_SCOPE)
    return()
  endif()
  set(CUDART_INCLUDE ${include} PARENT_SCOPE)
  set(CUDART_STATIC ${library} PARENT_SCOPE)
  set(${reason} "" PARENT_SCOPE)
endfunction()

if(NOT SEED_FAST_CUDA MATCHES "^(auto|0|1)$")
  message(FATAL_ERROR "SEED_FAST_CUDA: expected auto, 0 or 1, got '${SEED_FAST_CUDA}'")
endif()
add_library(seed_fast_cuda INTERFACE)
if(SEED_FAST_BUILD_MODULE)
  seed_fast_find_cuda(SEED_FAST_CUDA_REASON)
else()
  set(SEED_FAST_CUDA_REASON "not part of this build")
endif()

if(SEED_FAST_CUDA_REASON)
  set(SEED_FAST_WITH_CUDA 0)
  if(SEED_FAST_CUDA STREQUAL "1")
    message(FATAL_ERROR "SEED_FAST_CUDA=1, but: ${SEED_FAST_CUDA_REASON}")
  endif()
  message(STATUS "CUDA: left out: ${SEED_FAST_CUDA_REASON}")
else()
  set(SEED_FAST_WITH_CUDA 1)
  message(STATUS "CUDA: ${CUDART_STATIC}")
  file(GLOB device_sources CONFIGURE_DEPENDS csrc/cuda/*.cu)
  file(GLOB launcher_sources CONFIGURE_DEPENDS csrc/cuda/*.cpp)
  file(GLOB device_headers CONFIGURE_DEPENDS csrc/cuda/*.h csrc/cuda/*.cuh csrc/include/*.h csrc/include/*.cuh)
  set(device_dir ${CMAKE_CURRENT_BINARY_DIR}/device)
  set(prebuilt "")
  set(comment "Compiling CUDA device code for all architectures")
  if(SEED_FAST_FATBIN)
    if(NOT EXISTS "${SEED_FAST_FATBIN}")
      message(FATAL_ERROR "SEED_FAST_FATBIN: no such file: ${SEED_FAST_FATBIN}")
    endif()
    set(prebuilt --prebuilt ${SEED_FAST_FATBIN})
    set(comment "Embedding the CUDA device code of ${SEED_FAST_FATBIN}")
  endif()
  add_custom_command(
    OUTPUT ${device_dir}/device_code.cpp
    BYPRODUCTS ${device_dir}/device_code.json
    COMMAND
      ${Python_EXECUTABLE} ${device_compiler} build ${device_dir} ${device_sources} -I
      ${CMAKE_CURRENT_SOURCE_DIR}/csrc/include -I ${CMAKE_CURRENT_SOURCE_DIR}/csrc/cuda --cache
      ${SEED_FAST_DEVICE_CACHE} ${prebuilt}
    DEPENDS ${device_sources} ${device_headers} ${device_driver_files} ${SEED_FAST_FATBIN}
    COMMENT "${comment}"
    VERBATIM)
  add_library(seed_fast_launchers OBJECT ${launcher_sources} ${device_dir}/device_code.cpp)
  target_include_directories(seed_fast_launchers SYSTEM PUBLIC ${CUDART_INCLUDE})
  target_link_libraries(seed_fast_launchers PUBLIC seed_fast_options)
  # The objects by name: an interface target does not hand on the objects of an object library by itself.
  target_sources(seed_fast_cuda INTERFACE $<TARGET_OBJECTS:seed_fast_launchers>)
  target_include_directories(seed_fast_cuda SYSTEM INTERFACE ${CUDART_INCLUDE})
  target_link_libraries(seed_fast_cuda INTERFACE ${CUDART_STATIC} ${CMAKE_DL_LIBS} rt Threads::Threads)
endif()
target_compile_definitions(seed_fast_cuda INTERFACE SEED_FAST_WITH_CUDA=${SEED_FAST_WITH_CUDA})

# build_info.h: what `seed_fast._C.build_info()` answers; the device half comes from the compile driver.
function(seed_fast_write_build_info)
  set(cuda_embedded false)
  if(SEED_FAST_WITH_CUDA)
    set(cuda_embedded true)
  endif()
  string(REPLACE "\"" "\\\"" cuda_reason "${SEED_FAST_CUDA_REASON}")
  set(compiler "${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}")
  if(SEED_FAST_ZIG)
    string(APPEND compiler " (zig, ${SEED_FAST_ZIG_TARGET})")
  endif()
  configure_file(cmake/build_info.h.in generated/build_info.h @ONLY)
endfunction()
