# SPDX-License-Identifier: Apache-2.0
# GROUPED_CUDA=AUTO|ON|OFF to GROUPED_WITH_CUDA, and says so. ON without a compiler ends here with a sentence.
set(GROUPED_CUDA "AUTO" CACHE STRING "Build the CUDA kernels: AUTO, ON or OFF")
set_property(CACHE GROUPED_CUDA PROPERTY STRINGS AUTO ON OFF)
if(NOT GROUPED_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "GROUPED_CUDA must be AUTO, ON or OFF; got \"${GROUPED_CUDA}\".")
endif()

set(GROUPED_WITH_CUDA OFF)
if(NOT GROUPED_CUDA STREQUAL "OFF")
  if(DEFINED ENV{CUDACXX})
    set(GROUPED_NVCC $ENV{CUDACXX})
  else()
    find_program(GROUPED_NVCC nvcc HINTS $ENV{CUDA_HOME}/bin /usr/local/cuda/bin)
  endif()
  if(GROUPED_NVCC)
    set(GROUPED_WITH_CUDA ON)
    set(CMAKE_CUDA_COMPILER ${GROUPED_NVCC})
  elseif(GROUPED_CUDA STREQUAL "ON")
    message(FATAL_ERROR "GROUPED_CUDA=ON needs the CUDA compiler nvcc (12.8 or newer) and none was found. Put it on "
                        "PATH, set CUDACXX to it, or build with GROUPED_CUDA=OFF.")
  endif()
endif()

# The wheel's version carries the choice, and is made before CMake runs: the two must agree.
if(DEFINED SKBUILD_PROJECT_VERSION_FULL)
  if(SKBUILD_PROJECT_VERSION_FULL MATCHES "\\+cu")
    set(GROUPED_NAMED_CUDA ON)
  else()
    set(GROUPED_NAMED_CUDA OFF)
  endif()
  if(NOT GROUPED_NAMED_CUDA STREQUAL GROUPED_WITH_CUDA)
    message(FATAL_ERROR "The version ${SKBUILD_PROJECT_VERSION_FULL} and this build (CUDA ${GROUPED_WITH_CUDA}) "
                        "disagree: nvcc appeared or went away between the two. Build again.")
  endif()
endif()

if(GROUPED_WITH_CUDA)
  # Never "native": the machine that builds may have no GPU. Each target of the kernels names its own.
  set(CMAKE_CUDA_ARCHITECTURES OFF)
  set(GROUPED_LANGUAGES CXX CUDA)
  message(STATUS "grouped-ffi: CUDA kernels ON (GROUPED_CUDA=${GROUPED_CUDA}, ${GROUPED_NVCC})")
else()
  set(GROUPED_LANGUAGES CXX)
  message(STATUS "grouped-ffi: CUDA kernels OFF (GROUPED_CUDA=${GROUPED_CUDA}); CPU only")
endif()
