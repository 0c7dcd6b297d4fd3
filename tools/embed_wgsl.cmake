# cmake -DOUTPUT=wgsl.cpp -DROOT=folder -P embed_wgsl.cmake a.wgsl lib/b.wgsl ...: writes the texts as one C++ file. Names are
# relative to ROOT, without the ending.
set(entries "")
set(first_file FALSE)
math(EXPR last "${CMAKE_ARGC} - 1")
foreach(i RANGE ${last})
  if(first_file)
    set(name ${CMAKE_ARGV${i}})
    file(READ ${ROOT}/${name} text)
    string(REGEX REPLACE "\\.wgsl$" "" name ${name})
    if(text MATCHES "\\)wgsl\"")
      message(FATAL_ERROR "${name}: the text contains )wgsl\", which ends its C++ literal.")
    endif()
    string(APPEND entries "    {\"${name}\", R\"wgsl(${text})wgsl\"},\n")
  elseif("${CMAKE_ARGV${i}}" MATCHES "embed_wgsl.cmake$")
    set(first_file TRUE)
  endif()
endforeach()
file(WRITE ${OUTPUT} "#include \"nibble/kernels/kernel.h\"

namespace nibble::detail {

const std::map<std::string_view, std::string_view>& embedded_wgsl() {
  static const std::map<std::string_view, std::string_view> texts = {
${entries}  };
  return texts;
}

}  // namespace nibble::detail
")
