# The library nibble_build_info: what this build was made from. Its one source is written anew where the commit changes,
# so that nothing else is compiled again.
set(NIBBLE_BUILD_INFO_SOURCE ${CMAKE_BINARY_DIR}/generated/nibble/cli/build_info.cpp)
add_custom_target(nibble_write_build_info
  COMMAND ${CMAKE_COMMAND} -DSOURCE=${CMAKE_SOURCE_DIR} -DOUTPUT=${NIBBLE_BUILD_INFO_SOURCE}
    -P ${CMAKE_CURRENT_LIST_DIR}/write_build_info.cmake
  BYPRODUCTS ${NIBBLE_BUILD_INFO_SOURCE}
  COMMENT "Looking up the commit")
add_library(nibble_build_info STATIC ${NIBBLE_BUILD_INFO_SOURCE})
target_link_libraries(nibble_build_info PUBLIC nibble_options)
add_dependencies(nibble_build_info nibble_write_build_info)
