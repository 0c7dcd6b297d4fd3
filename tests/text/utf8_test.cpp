#include "nibble/text/utf8.h"

#include <gtest/gtest.h>

#include "nibble/text/byte_level.h"

namespace nibble::text::utf8_test {
namespace {

TEST(Utf8, CodePointsComeBack) {
  for (const char32_t code : {U'\0', U'a', U'\x7F', U'\x80', U'\x7FF', U'\x800', U'\xD7FF', U'\xE000', U'\xFFFF',
                              U'\x10000', U'\x1F600', U'\x10FFFF'}) {
    const std::string text = to_utf8(code);
    EXPECT_EQ(check_utf8(text, 0), static_cast<int>(text.size())) << std::hex << static_cast<unsigned>(code);
    const Utf8Char back = decode_utf8(text, 0);
    EXPECT_EQ(back.code, code);
    EXPECT_EQ(back.length, text.size());
  }
}

// Expected strings are those of Python's bytes.decode("utf-8", "replace").
TEST(Utf8, ReplacesBrokenSequencesAsPythonDoes) {
  const std::string fffd = "\xEF\xBF\xBD";
  EXPECT_EQ(replace_broken_utf8("plain text, long enough for words"), "plain text, long enough for words");
  EXPECT_EQ(replace_broken_utf8("a\x80z"), "a" + fffd + "z");
  EXPECT_EQ(replace_broken_utf8("\xF0\x9F\x98"), fffd);
  EXPECT_EQ(replace_broken_utf8("\xF0\x9F\x98z"), fffd + "z");
  EXPECT_EQ(replace_broken_utf8("\xC0\xAF"), fffd + fffd);                        // overlong
  EXPECT_EQ(replace_broken_utf8("\xED\xA0\x80"), fffd + fffd + fffd);             // surrogate
  EXPECT_EQ(replace_broken_utf8("\xF4\x90\x80\x80"), fffd + fffd + fffd + fffd);  // beyond U+10FFFF
  EXPECT_EQ(replace_broken_utf8("\xE4\xBD\xA0\xE5\xA5"), "\xE4\xBD\xA0" + fffd);
  EXPECT_EQ(replace_broken_utf8("\xFF"
                                "12345678\xFE"),
            fffd + "12345678" + fffd);
}

TEST(ByteLevel, EveryByteComesBack) {
  std::string bytes;
  for (int byte = 0; byte < 256; ++byte) bytes.push_back(static_cast<char>(byte));
  EXPECT_EQ(from_byte_level(to_byte_level(bytes)), bytes);
}

TEST(ByteLevel, KnownCharacters) {
  EXPECT_EQ(to_byte_level(" a\n"),
            "\xC4\xA0"
            "a"
            "\xC4\x8A");
  EXPECT_EQ(byte_level_char(0xAD), to_utf8(0x143));
  EXPECT_EQ(from_byte_level("<|im start|>"), "<|im start|>");  // a space is not of the alphabet
}

}  // namespace
}  // namespace nibble::text::utf8_test
