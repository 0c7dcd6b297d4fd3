# Headers that most sources include, compiled once for each level of optimisation. Only with NIBBLE_UNITY: file by file every
# source shows whether it includes what it uses.
set(NIBBLE_LIBRARY_HEADERS <algorithm> <array> <bit> <charconv> <cmath> <cstdint> <cstring> <filesystem> <fstream> <functional> <map>
  <memory> <numeric> <optional> <span> <string> <string_view> <vector> <fmt/format.h> <nlohmann/json.hpp>)
set(NIBBLE_TEST_HEADERS ${NIBBLE_LIBRARY_HEADERS} <chrono> <random> <sstream> <gtest/gtest.h>)

# nibble_headers(TARGET LEVEL KIND [LINKS ...]): the target is compiled at LEVEL (-O2), with the headers of its KIND, LIBRARY or TEST.
function(nibble_headers target level kind)
  target_compile_options(${target} PRIVATE $<$<CONFIG:Release>:${level}>)
  if(NOT NIBBLE_UNITY)
    return()
  endif()
  string(TOLOWER nibble_headers_${kind}${level} headers)
  if(NOT TARGET ${headers})
    add_library(${headers} OBJECT ${CMAKE_SOURCE_DIR}/cmake/headers.cpp)
    target_link_libraries(${headers} PRIVATE nibble_options fmt::fmt nlohmann_json::nlohmann_json ${ARGN})
    target_compile_options(${headers} PRIVATE $<$<CONFIG:Release>:${level}>)
    target_precompile_headers(${headers} PRIVATE ${NIBBLE_${kind}_HEADERS})
  endif()
  target_precompile_headers(${target} REUSE_FROM ${headers})
endfunction()
