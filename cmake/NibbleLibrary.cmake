add_library(nibble_options INTERFACE)
target_include_directories(nibble_options INTERFACE ${CMAKE_SOURCE_DIR})
target_compile_options(nibble_options INTERFACE -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wno-sign-conversion
  # Designated initialisers leave out what keeps its default.
  -Wno-missing-field-initializers
  # Contraction would make results depend on the compiler's choice of fused operations.
  -ffp-contract=off)
if(NIBBLE_WERROR)
  target_compile_options(nibble_options INTERFACE -Werror)
endif()
if(NIBBLE_SANITIZE)
  # What sanitizers add hides from GCC that a value is set.
  target_compile_options(nibble_options INTERFACE -fsanitize=${NIBBLE_SANITIZE} -fno-omit-frame-pointer
    $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>)
  target_link_options(nibble_options INTERFACE -fsanitize=${NIBBLE_SANITIZE})
endif()

# With NIBBLE_UNITY twelve sources become one translation unit, which takes less than a third of the time where headers cost more than code. Their
# anonymous namespaces become one too (HACKING.md).
function(nibble_unity target)
  set_target_properties(${target} PROPERTIES UNITY_BUILD ${NIBBLE_UNITY} UNITY_BUILD_BATCH_SIZE 12)
endfunction()

# nibble_library(gpu SOURCES device.cpp ... LINKS nibble_base ...): the library nibble_gpu of the folder it is called in. LEVEL of
# optimisation: -O2 where the GPU does the work, -O1 where nothing is hot, else -O3.
function(nibble_library name)
  cmake_parse_arguments(ARG "" "LEVEL" "SOURCES;LINKS" ${ARGN})
  if(NOT ARG_LEVEL)
    set(ARG_LEVEL -O3)
  endif()
  add_library(nibble_${name} STATIC ${ARG_SOURCES})
  nibble_unity(nibble_${name})
  nibble_headers(nibble_${name} ${ARG_LEVEL} LIBRARY)
  target_link_libraries(nibble_${name} PUBLIC nibble_options ${ARG_LINKS})
endfunction()

# nibble_test(NAME SOURCES ... LINKS ... LABELS ...): one GoogleTest program, run by ctest as a whole. Most wait for the program or the
# adapter, so that compiling takes longer than running; OPTIMIZED: not those that compute much themselves. COST: about how many seconds a
# long test takes, for ctest starts the longest first.
function(nibble_test name)
  cmake_parse_arguments(ARG "OPTIMIZED" "TIMEOUT;COST" "SOURCES;LINKS;LABELS" ${ARGN})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 1200)
  endif()
  set(level -O0)
  if(ARG_OPTIMIZED)
    set(level -O1)
  endif()
  add_executable(test_${name} ${ARG_SOURCES})
  nibble_unity(test_${name})
  target_link_libraries(test_${name} PRIVATE ${ARG_LINKS} nibble_options GTest::gtest_main)
  nibble_headers(test_${name} ${level} TEST GTest::gtest)
  target_compile_definitions(test_${name} PRIVATE NIBBLE_SOURCE_DIR="${CMAKE_SOURCE_DIR}")
  add_test(NAME ${name} COMMAND test_${name})
  set_tests_properties(${name} PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT ${ARG_TIMEOUT})
  if(ARG_COST)
    set_tests_properties(${name} PROPERTIES COST ${ARG_COST})
  endif()
  # As many tests run as there are cores: where these are few, the software adapter's threads only take turns with the other tests'.
  # Kernels and models are tested with threads everywhere.
  cmake_host_system_information(RESULT cores QUERY NUMBER_OF_LOGICAL_CORES)
  if("recipe" IN_LIST ARG_LABELS AND cores LESS_EQUAL 4)
    set_tests_properties(${name} PROPERTIES ENVIRONMENT LP_NUM_THREADS=0)
  endif()
endfunction()
