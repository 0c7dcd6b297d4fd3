# Turns tools/dependencies.txt into the header nibble/cli/tested_versions.h, for programs that link
# nibble_tested_versions.
set(NIBBLE_DEPENDENCY_LIST ${CMAKE_SOURCE_DIR}/tools/dependencies.txt)
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${NIBBLE_DEPENDENCY_LIST})

file(STRINGS ${NIBBLE_DEPENDENCY_LIST} lines REGEX "^(system|dawn) ")
set(NIBBLE_TESTED_VERSIONS "")
foreach(line IN LISTS lines)
  string(REGEX REPLACE "^[a-z]+ +([^ ]+) +([^ ]+) *$" "    {\"\\1\", \"\\2\"}," entry "${line}")
  string(APPEND NIBBLE_TESTED_VERSIONS "${entry}\n")
endforeach()
list(LENGTH lines NIBBLE_TESTED_COUNT)
configure_file(${CMAKE_CURRENT_LIST_DIR}/tested_versions.h.in
  ${CMAKE_BINARY_DIR}/generated/nibble/cli/tested_versions.h @ONLY)

add_library(nibble_tested_versions INTERFACE)
target_include_directories(nibble_tested_versions INTERFACE ${CMAKE_BINARY_DIR}/generated)
