# Finds Dawn. Debian 12 has no package of it, so the set-up script unpacks one under build/dawn; that tree brings its own
# C library, and a program that uses it starts through that library's loader (see HACKING.md, "Dawn").
set(NIBBLE_DAWN_TREE ${CMAKE_SOURCE_DIR}/build/dawn CACHE PATH "Unpacked tree of Dawn and its libraries; unused where it does not exist")

set(NIBBLE_DAWN_LIB ${NIBBLE_DAWN_TREE}/usr/lib/${CMAKE_CXX_LIBRARY_ARCHITECTURE})
if(NOT DEFINED ENV{Dawn_DIR} AND EXISTS ${NIBBLE_DAWN_LIB}/libwebgpu_dawn.so)
  # Not by the tree's own DawnConfig.cmake: it declares a C++ module, which CMake before 3.28 cannot read.
  add_library(dawn::webgpu_dawn SHARED IMPORTED)
  set_target_properties(dawn::webgpu_dawn PROPERTIES
    IMPORTED_LOCATION ${NIBBLE_DAWN_LIB}/libwebgpu_dawn.so
    INTERFACE_INCLUDE_DIRECTORIES ${NIBBLE_DAWN_TREE}/usr/include)
  file(GLOB NIBBLE_DAWN_LOADER ${NIBBLE_DAWN_LIB}/ld-linux-*.so.*)
  add_library(nibble_dawn INTERFACE)
  # The tree's libraries find each other, but the linker would look for them among the system's.
  target_link_options(nibble_dawn INTERFACE
    -Wl,--allow-shlib-undefined -Wl,--disable-new-dtags,-rpath,${NIBBLE_DAWN_LIB}
    -Wl,--dynamic-linker=${NIBBLE_DAWN_LOADER})
  target_compile_definitions(nibble_dawn INTERFACE NIBBLE_DAWN_TREE="${NIBBLE_DAWN_TREE}")
else()
  find_package(Dawn REQUIRED CONFIG)
  add_library(nibble_dawn INTERFACE)
endif()
target_link_libraries(nibble_dawn INTERFACE dawn::webgpu_dawn)
if(NIBBLE_SANITIZE)
  add_library(nibble_keep_libraries OBJECT ${CMAKE_CURRENT_LIST_DIR}/keep_libraries.cpp)
  target_link_libraries(nibble_dawn INTERFACE $<TARGET_OBJECTS:nibble_keep_libraries>)
endif()
